"""The commands that README and docs show exist, with the options shown; every command explains itself."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/*/README.md")])
SCRIPTS: dict[str, str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]


def shown_commands() -> list[tuple[str, list[str]]]:
    """(document, words) of every mote- command in the documents' code blocks, and make targets."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:console|bash|sh)\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and words[0] in ("$", "nohup"):
                    words = words[1:]
                if words and (words[0].startswith("mote-") or words[0] == "make"):
                    found.append((document.name, words))
    return found


def known_options(command: str) -> tuple[set[str], bool]:
    """The options of a console script, of its subcommands too, and whether it hands unknown ones on."""
    module, _ = SCRIPTS[command].split(":")
    root = get_command(import_module(module).app)
    commands = [root, *getattr(root, "commands", {}).values()]
    options = {option for each in commands for parameter in each.params for option in parameter.opts}
    return options | {"--help"}, any(each.context_settings.get("ignore_unknown_options") for each in commands)


COMMANDS = shown_commands()


@pytest.mark.parametrize(("document", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS])
def test_shown_command_exists(document: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    assert words[0] in SCRIPTS
    options, hands_on = known_options(words[0])
    shown = {word.split("=")[0] for word in words[1:] if re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word)}
    unknown = shown - options - {"-inf"}
    assert hands_on or not unknown, f"{document} shows {sorted(unknown)}"


def test_documents_show_every_command() -> None:
    assert {words[0] for _, words in COMMANDS if words[0] != "make"} >= set(SCRIPTS)


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
