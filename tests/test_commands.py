"""What all commands share: --quiet, -v, exit codes, completion, python -m, what is not installed; and their page."""

import ast
import importlib
import importlib.util
import os
import pty
import runpy
import signal
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from rewriter.console import make_app, run, say
from rewriter.errors import InputError
from rewriter.missing import EXTRA_OF, missing_package
from rewriter.progress import PartProgress, PartsProgress

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
SCRIPTS: dict[str, str] = PROJECT["scripts"]


def call(act, *words: str) -> int:
    """A command that does `act`, through its console entry; its exit code."""
    app = make_app()
    app.command()(act)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["act", *words])
        with pytest.raises(SystemExit) as end:
            run(app)
    return int(end.value.code or 0)


def talkative() -> None:
    """Act."""
    say("hello")
    say("warning: careful")
    print("data")
    raise InputError("no such file")


def test_quiet_leaves_results_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(talkative) == 1
    assert capsys.readouterr() == ("data\n", "hello\nwarning: careful\nerror: no such file\n")
    assert call(talkative, "--quiet") == 1
    assert capsys.readouterr() == ("data\n", "warning: careful\nerror: no such file\n")
    # And it is not kept for the next command of the same process.
    assert call(talkative) == 1
    assert "hello" in capsys.readouterr().err


def test_verbose_says_when_and_where(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")  # what the user has set stays
    assert call(talkative, "-v") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" s] hello") and lines[0].startswith("[")
    assert any("in talkative" in line for line in lines) and lines[-1].endswith("error: no such file")
    assert os.environ["VLLM_LOGGING_LEVEL"] == "ERROR"


def test_deprecations_within_libraries_are_not_told_to_users() -> None:
    def act() -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.warn("a library's own", FutureWarning, stacklevel=1)
        assert not told

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert call(act) == 0


def test_every_end_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats")

    assert call(lambda: None) == 0
    assert call(lambda: None, "--no-such-option") == 2
    assert "--no-such-option" in capsys.readouterr().err
    assert call(interrupted, "--quiet") == 130
    assert "the same command" in capsys.readouterr().err
    assert call(lacking) == 1
    assert capsys.readouterr().err == (
        "error: scipy is not installed, which chat templates, statistics and reports need; pip install"
        " 'mote-tunable-experts[analysis]'\n"
    )


def test_a_module_that_no_extra_brings_is_not_explained_away() -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'rewriter.nothing'", name="rewriter.nothing")

    app = make_app()
    app.command()(broken)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModuleNotFoundError):
        patch.setattr(sys, "argv", ["act"])
        run(app)


# Packages by the distribution that brings them, where that has another name.
DISTRIBUTION_OF = {
    "httpx2": "huggingface-hub",
    "huggingface_hub": "huggingface-hub",
    "markupsafe": "jinja2",
    "sklearn": "scikit-learn",
    "threadpoolctl": "scikit-learn",
    "yaml": "pyyaml",
}


def test_every_package_that_is_imported_comes_with_the_base_or_a_named_extra() -> None:
    imported = set()
    for path in (path for package in ("rewriter", "ftri", "eval") for path in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    base = {line.partition(">")[0] for line in PROJECT["dependencies"]} | {"rewriter", "ftri", "eval"}
    unnamed = imported - set(sys.stdlib_module_names) - set(EXTRA_OF)
    assert {module for module in unnamed if DISTRIBUTION_OF.get(module, module) not in base} == set()


@pytest.mark.parametrize(("module", "extra"), EXTRA_OF.items())
def test_every_named_extra_brings_the_package(module: str, extra: str) -> None:
    distribution = DISTRIBUTION_OF.get(module, module)
    brought = " ".join(PROJECT["optional-dependencies"][extra])
    assert distribution in brought
    assert f"[{extra}]" in (missing_package(f"{module}.part") or "")


@pytest.mark.slow
def test_a_reader_that_went_away_is_141() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = '{"prompt": "p", "text": "t", "finish_reason": "stop"}\n' * 5
    ran = subprocess.run(
        [sys.executable, "-m", "ftri.cli.label", "-"],
        input=lines,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def printed(script: str, words: list[str], capsys: pytest.CaptureFixture[str], **environment: str) -> str:
    """What `python -m` of the command's module prints, in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [script, *words])
        for name, value in environment.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the module has been imported already
            runpy.run_module(SCRIPTS[script].split(":")[0], run_name="__main__", alter_sys=True)
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_takes_the_shared_options_runs_as_a_module_and_completes(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    helped = printed(script, ["--help"], capsys)
    assert "--quiet" in helped and "-v, --verbose" in helped
    variable = f"_{script.replace('-', '_').upper()}_COMPLETE"
    for start, option in (("--qui", "--quiet"), ("--verb", "--verbose")):
        words = {"COMP_WORDS": f"{script} {start}", "COMP_CWORD": "1", variable: "complete_bash"}
        # A module has no name of its own; the installed command completes.
        assert completed(script, words, capsys).split() == [option]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_teaches_every_shell_to_complete_it_and_says_so(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = f"_{script.replace('-', '_').upper()}_COMPLETE"
    for shell, words in (
        ("bash", f"complete -o default -F _{script.replace('-', '_')}_completion {script}"),
        ("zsh", f"compdef _{script.replace('-', '_')}_completion {script}"),
        ("fish", f"complete --command {script} "),
        ("powershell", f"Register-ArgumentCompleter -Native -CommandName {script} "),
    ):
        assert words in completed(script, {variable: f"source_{shell}"}, capsys), shell
    helped = printed(script, ["--help"], capsys)
    assert "--install-completion" in helped and "--show-completion" in helped
    page = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    (listed,) = [line for line in page.splitlines() if line.startswith("for command in ")]
    assert script in listed.removesuffix("; do").split()


def completed(script: str, environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command offers to the shell."""
    module, function = SCRIPTS[script].split(":")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", [script])
        patch.setitem(sys.modules["__main__"].__dict__, "__package__", None)
        for name, value in environment.items():
            patch.setenv(name, value)
        getattr(importlib.import_module(module), function)()
    return capsys.readouterr().out


def test_a_first_word_completes_to_subcommands_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = {"_MOTE_FTRI_COMPLETE": "complete_bash", "COMP_WORDS": "mote-ftri me", "COMP_CWORD": "1"}
    assert completed("mote-ftri", words, capsys).split() == ["merge"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["mote-ftri", "mote-rewrite"])
def test_nothing_is_coloured_on_a_terminal(script: str) -> None:
    """Errors of parsing, of a command, and help, each on a terminal."""
    module = SCRIPTS[script].split(":")[0]
    for words in (["--help"], ["--no-such"], ["--suppress", "none.json"], ["--show-completion"]):
        reading, writing = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words], stdout=writing, stderr=writing, stdin=writing, cwd=REPOSITORY,
            env=os.environ | {"NO_COLOR": "1", "COLUMNS": "80"},
        )  # fmt: skip
        os.close(writing)
        shown = b""
        while True:
            try:
                part = os.read(reading, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        process.wait()
        os.close(reading)
        assert shown and b"\x1b[" not in shown, words


@pytest.mark.slow
def test_ctrl_c_is_130() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = ['x', '-']\n"
        "from ftri.cli.label import main\nmain()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Unbuffered, so that the first answer shows that it is at work and waits for more.
    process = subprocess.Popen([sys.executable, "-u", "-c", code], **pipes, cwd=REPOSITORY)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b'{"prompt": "p", "text": "t", "finish_reason": "stop"}\n')
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    said = process.communicate()[1]
    assert process.returncode == 130 and b"interrupted" in said


def test_progress_is_a_sentence_a_minute_where_no_bar_can_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    with PartProgress("recording", 40, "responses", now=lambda: clock[0]) as progress:
        progress.begin(10)
        for _ in range(10):
            clock[0] += 13
            progress.advance(1, 26)
    assert capsys.readouterr().err.splitlines() == [
        "recording: 15 of 40 responses, 2 tokens/s, about 5 min left",
        "recording: 20 of 40 responses, 2 tokens/s, about 4 min left",
    ]


def test_what_is_left_is_said_after_the_first_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    progress = PartProgress("recording", 100, "responses", announce_after=3, now=lambda: clock[0])
    for _ in range(5):
        clock[0] += 2
        progress.advance(1, 10)
    assert capsys.readouterr().err == (
        "measured on the first 3 responses: 5 tokens/s; the 97 that are left take about 3 min, 0.05 node-hours\n"
    )


def test_every_part_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.progress.SENTENCE_EVERY_SECONDS", 0.0)
    progress = PartsProgress("answers")
    for part, there in (("base", 3), ("base", 4), ("variant", 1)):
        progress(part, there, 4, 10, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "base: 3 of 4 answers, 5 tokens/s, about 2 s left",
        "base: 4 of 4 answers, 10 tokens/s, about 0 s left",
        "variant: 1 of 4 answers, 5 tokens/s, about 6 s left",
    ]


def test_a_quiet_command_shows_no_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.progress.SENTENCE_EVERY_SECONDS", 0.0)

    def act() -> None:
        with PartProgress("part", 2, "answers") as progress:
            progress.advance(2, 5)

    assert call(act, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_the_page_of_commands_is_current() -> None:
    location = importlib.util.spec_from_file_location("render_commands", REPOSITORY / "docs" / "render_commands.py")
    assert location is not None and location.loader is not None
    script = importlib.util.module_from_spec(location)
    location.loader.exec_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        made = script.page()
    shown = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    assert made == shown, "docs/commands.md is not what --help says: run make schemas"
    for name in SCRIPTS:
        assert f"\n## {name}" in shown
