"""Pytest fixtures of the Hub tests: a running double, and command lines run against it as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_double.client import HubDouble
from hub_double.models import build_base, build_variant

TOKEN = "hf_aliceSECRETsecretSECRETsecret01"
READ_TOKEN = "hf_readerSECRETsecretSECRETsecr02"
BASE_ID = "deepseek-ai/Small"
REPO_ROOT = Path(__file__).parents[2]
PAIRS = [(2, 1), (4, 3)]
EDITED = ["model-00003-of-00006.safetensors", "model-00005-of-00006.safetensors"]


class Hub:
    """A double with a base, a variant of it, and a way to run commands against them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.double = HubDouble(root / "double")
        self.double.add_token(TOKEN, "alice")
        self.double.add_token(READ_TOKEN, "alice", role="read")
        self.base = build_base(root / "base")
        self.commit = self.double.seed(BASE_ID, self.base)
        self.variant = build_variant(self.base, root / "variant", BASE_ID, self.commit, PAIRS)
        self.outputs: list[str] = []

    def start(
        self, module: str, *arguments: str | Path, token: str | None = TOKEN, xet: bool = True, **variables: str
    ) -> "subprocess.Popen[str]":
        """Start a command line."""
        environment = {**self.double.environment(token, xet), "PYTHONPATH": str(REPO_ROOT), **variables}
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=environment, cwd=self.root, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, module: str, *arguments: str | Path, fails: bool = False, **options: object
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command line to its end; its output is kept for the search for tokens."""
        process = self.start(module, *arguments, **options)  # type: ignore[arg-type]
        stdout, stderr = process.communicate(timeout=120)
        self.outputs += [stdout, stderr]
        assert "Traceback" not in stderr, stderr
        assert (process.returncode != 0) == fails, f"{arguments} gave {process.returncode}:\n{stdout}\n{stderr}"
        return subprocess.CompletedProcess(list(map(str, arguments)), process.returncode, stdout, stderr)

    def push(self, *arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run mote-push."""
        return self.run("rewriter.cli.push", *arguments, **options)  # type: ignore[arg-type]

    def rewrite(self, *arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run mote-rewrite."""
        return self.run("ftri.cli.rewrite", *arguments, **options)  # type: ignore[arg-type]

    def download(self, repo_id: str, revision: str = "main") -> Path:
        """Download a repo with huggingface_hub into a fresh folder, through Xet where files are there."""
        target = self.root / "downloads" / f"{repo_id}-{revision}".replace("/", "-")
        code = (
            "import sys; from huggingface_hub import snapshot_download as get; "
            "get(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3])"
        )
        environment = self.double.environment(TOKEN)
        subprocess.run(
            [sys.executable, "-c", code, repo_id, revision, str(target)], env=environment, check=True,
            capture_output=True, timeout=120,
        )  # fmt: skip
        return target

    def error(self, completed: "subprocess.CompletedProcess[str]") -> str:
        """Return the one sentence that a failed command ends with."""
        last = completed.stderr.strip().splitlines()[-1]
        assert last.startswith("error: "), completed.stderr
        return last

    def assert_no_token(self) -> None:
        """Search all output so far, and every file that was written, for the tokens."""
        secrets = (TOKEN, READ_TOKEN)
        for text in self.outputs:
            assert not any(secret in text for secret in secrets), text
        server = self.root / "double" / "hub"
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder) / name
                if path.is_symlink() or path.is_relative_to(server) or path.suffix == ".safetensors":
                    continue  # the double knows its users; shards may be too large to read
                content = path.read_bytes()
                assert not any(secret.encode() in content for secret in secrets), path


@pytest.fixture(scope="module")
def module_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub double for one module of tests; at the end no output or file may hold a token."""
    started = Hub(tmp_path_factory.mktemp("hub"))
    yield started
    started.double.stop()
    started.assert_no_token()


@pytest.fixture
def hub(module_hub: Hub) -> Iterator[Hub]:
    """The module's Hub double, with no faults and an empty request log."""
    module_hub.double.clear_faults()
    module_hub.double.requests(clear=True)
    yield module_hub
    module_hub.double.clear_faults()
