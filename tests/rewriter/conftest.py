"""Fixtures of the rewriter's tests: a cheap checkpoint, and the commands as a user runs them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import build_checkpoint, tree_state, write_set
from commands import Command, Outcome

from ftri.cli import rewrite as cli
from ftri.cli import verify as verify_cli


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint built once; tests get copies."""
    return build_checkpoint(tmp_path_factory.mktemp("built") / "tiny")


@pytest.fixture
def base(built: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "tiny"))


@pytest.fixture
def refusal(tmp_path: Path) -> Path:
    """An expert set for `base`: two experts of one layer and one of another."""
    return write_set(tmp_path / "refusal.json", [(1, 3), (1, 8), (3, 0)])


@pytest.fixture
def mote_rewrite(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """mote-rewrite through its console entry, in this process."""
    return _command("mote-rewrite", cli.main, monkeypatch, capfd)


@pytest.fixture
def mote_verify(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """mote-verify through its console entry, in this process."""
    return _command("mote-verify", verify_cli.main, monkeypatch, capfd)


@pytest.fixture
def refuse(mote_rewrite: Command, tmp_path: Path) -> Callable[..., str]:
    """Run mote-rewrite, which must fail with one sentence, leave the source as it was and no output; gives the sentence."""

    def run(base: Path, *arguments: object, output: Path | None = None) -> str:
        target = output or tmp_path / "out"
        before, beside = tree_state(base), set(target.parent.iterdir())
        sentence = mote_rewrite("--model", base, "-o", target, *arguments).error
        assert tree_state(base) == before
        assert set(target.parent.iterdir()) == beside
        return sentence

    return run


def _command(
    name: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as leaving:
            code = leaving.code
        captured = capfd.readouterr()
        return Outcome(int(code or 0) if not isinstance(code, str) else 1, captured.out, captured.err)

    return run
