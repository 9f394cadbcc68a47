"""The commands that README and docs show parse; those marked as run in the demo do; every command explains itself."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from typer import BadParameter
from typer.main import get_command

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/*/README.md")])
# At the end of a shown command: the demo runs this command with at least these options.
DEMO_MARK = "# in the demo"
SCRIPTS: dict[str, str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]


def shown_commands() -> list[tuple[str, list[str], bool]]:
    """(document, words, marked as run in the demo) of every mote- command in the code blocks, and make targets."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:console|bash|sh)\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and words[0] in ("$", "nohup"):
                    words = words[1:]
                # What the shell does with a command's output is not the command's.
                words = words[: next((at for at, word in enumerate(words) if word in (">", "|")), None)]
                if words and (words[0].startswith("mote-") or words[0] == "make"):
                    found.append((document.name, words, line.rstrip().endswith(DEMO_MARK)))
    return found


def shown_files() -> list[tuple[str, str]]:
    """(name, content) of the TOML files that the documents show; a comment in the first line names them."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```toml\n(# (\S+\.toml)\n.*?)```", document.read_text(), re.DOTALL):
            found.append((block[1], block[0]))
    return found


def parse(words: list[str]) -> None:
    """Parse a command line as the command itself would, without running it; raises what the parser raises."""
    module, _ = SCRIPTS[words[0]].split(":")
    root = get_command(import_module(module).app)
    context = root.make_context(words[0], words[1:])
    if hasattr(root, "commands"):
        name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, rest, parent=context)


COMMANDS = shown_commands()


@pytest.mark.parametrize(
    ("document", "words"), [row[:2] for row in COMMANDS], ids=[" ".join(row[1])[:60] for row in COMMANDS]
)
def test_shown_command_parses(document: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    for name, content in shown_files():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    parse(words)


def test_parsing_refuses_what_a_command_does_not_have() -> None:
    with pytest.raises(BadParameter.__bases__[0], match="--surpress"):
        parse(["mote-rewrite", "--surpress", "refusal.json"])


def options(words: list[str]) -> set[str]:
    """The options among a command's words."""
    return {word.split("=")[0] for word in words[1:] if re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word)}


def test_commands_marked_as_run_in_the_demo_are_its_own() -> None:
    marked = [words for _, words, in_demo in COMMANDS if in_demo]
    assert len(marked) >= 4
    ran = demo_commands()
    for words in marked:
        own = [command for command in ran if command[0] == words[0] and options(words) <= options(command)]
        assert own, f"no command of the demo has what {shlex.join(words)} has"


def demo_commands() -> list[list[str]]:
    """The commands that the demo runs, in order, taken from the demo itself with nothing run."""
    code = (
        "import contextlib, json, runpy, sys\n"
        "from unittest import mock\n"
        "demo = runpy.run_path(sys.argv[1], run_name='demo')\n"
        "ran = []\n"
        "here = demo['main'].__globals__\n"
        "here |= {'run': lambda *words: ran.append([str(word) for word in words]),\n"
        "         'make_output': lambda folder: folder.mkdir(), 'refused_prompts': lambda traces: [],\n"
        "         'convert': lambda *rest: None, 'ask_gguf': lambda *rest: [],\n"
        "         'show_routing': lambda *rest: None, 'served': lambda model: contextlib.nullcontext('')}\n"
        "sys.argv[1:] = ['--output', sys.argv[2]]\n"
        "with contextlib.redirect_stdout(sys.stderr):\n"
        "    demo['main']()\n"
        "print(json.dumps(ran))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "-c", code, str(REPOSITORY / "examples" / "demo.py"), f"{folder}/out"]
        finished = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


@pytest.mark.slow
@pytest.mark.vllm
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "examples" / "demo.py"), "--output", str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    printed = [
        line.removeprefix("$ ").split()[0] for line in finished.stdout.splitlines() if line.startswith("$ mote-")
    ]
    assert printed == [words[0] for words in demo_commands()]
    for noise in ("Triton", "NUMA", "FutureWarning"):
        assert noise not in finished.stdout + finished.stderr


def test_documents_show_every_command() -> None:
    assert {words[0] for _, words, _ in COMMANDS if words[0] != "make"} >= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_itself_without_heavy_imports(script: str) -> None:
    module, function = SCRIPTS[script].split(":")
    code = (
        f"import sys; sys.argv = [{script!r}, '--help']\n"
        f"from {module} import {function}\n"
        "try:\n"
        f"    {function}()\n"
        "finally:\n"
        "    heavy = {'torch', 'vllm', 'transformers', 'scipy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Usage:" in finished.stdout and "--help" in finished.stdout


def test_architecture_names_every_folder_of_the_packages() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    folders = {f"{path.parent.parent.name}/{path.parent.name}/" for path in REPOSITORY.glob("[a-z]*/*/__init__.py")}
    folders = {folder for folder in folders if folder.split("/")[0] in ("rewriter", "ftri", "eval")}
    named = set(re.findall(r"`((?:rewriter|ftri|eval)/\w+/)`", text))
    assert named == folders
    for path in re.findall(r"`((?:rewriter|ftri|eval)/[\w/]+\.py)`", text):
        assert (REPOSITORY / path).is_file(), path
