"""Options written once: their help in panels, their values from a TOML file, and the command line above it."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from rewriter.command import Option, command
from rewriter.console import make_app
from rewriter.errors import InputError


def upper(option: str, text: str) -> tuple[str, ...]:
    if not text.replace(",", "").isalpha():
        raise InputError(f"{option} has {text!r}, expected letters")
    return tuple(text.upper().split(","))


@dataclass(frozen=True)
class Inner:
    count: Annotated[int, Option("How many.", "Numbers", metavar="N")] = 3
    warm: Annotated[bool, Option("Leave the warming out.", "Numbers", name="no-warming")] = True


@dataclass(frozen=True)
class Outer:
    prompts: Annotated[str, Option("What is asked.", "Input")]
    output: Annotated[Path, Option("Where to.", "Input", short="-o")] = Path("out")
    inner: Inner = field(default_factory=Inner)
    share: Annotated[float | None, Option("A share.", "Numbers")] = None
    words: Annotated[tuple[str, ...], Option("Words, comma-separated.", "Input", parse=upper)] = ("A", "B")
    more: Annotated[tuple[str, ...], Option("More; repeatable.", "Input")] = ()
    dry_run: Annotated[bool, Option("Only say.", "Input")] = False
    unseen: dict[str, Any] = field(default_factory=dict)


def run(*arguments: str) -> tuple[Outer, list[str]]:
    got: list[tuple[Outer, list[str]]] = []
    app = make_app()

    @command(app, Outer, pass_on=True)
    def act(request: Outer, words: list[str]) -> None:
        """Act."""
        got.append((request, words))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["act", *arguments])
        app()
    assert not end.value.code
    return got[0] if got else (Outer(""), [])


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_defaults_are_the_fields() -> None:
    assert run("--prompts", "p") == (Outer("p"), [])


def test_every_option_is_read_from_the_command_line() -> None:
    request, words = run(
        "--prompts", "p", "-o", "there", "--count", "7", "--no-warming", "--share", "0.5", "--words", "x,y",
        "--more", "1", "--more", "2", "--dry-run", "--max-model-len", "64",
    )  # fmt: skip
    assert request == Outer("p", Path("there"), Inner(7, False), 0.5, ("X", "Y"), ("1", "2"), True)
    assert words == ["--max-model-len", "64"]


def test_help_has_one_section_a_panel(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")
    shown = capsys.readouterr().out
    places = [shown.index(title) for title in ("Input:", "--prompts", "Numbers:", "--count N", "General:", "--config")]
    assert places == sorted(places)
    assert "[default: A,B]" in shown and "[default: 3]" in shown


def test_a_file_gives_every_option_by_its_name_and_the_command_line_wins(tmp_path: Path) -> None:
    text = """
        prompts = "p"
        output = "there"
        count = 7
        no-warming = true
        share = 1
        words = ["x", "y"]
        dry_run = true
        [more]
        tensor_parallel_size = 8
        eager = true
    """
    request, _ = run("--config", config(tmp_path, text), "--count", "9", "--words", "z")
    assert request == Outer(
        "p", Path("there"), Inner(9, False), 1.0, ("Z",), ("tensor_parallel_size=8", "eager=true"), True
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("promts = 'p'", "'promts' is not an option; did you mean prompts?"),
        ("zzz = 1", "'zzz' is not an option; see --help for the options"),
        ("count = 'many'", "count is 'many', expected a whole number"),
        ("count = true", "count is 'True', expected a whole number"),
        ("share = 'half'", "share is 'half', expected a number"),
        ("dry-run = 1", "dry-run is '1', expected true or false"),
        ("prompts = 3", "prompts is '3', expected a text"),
        ("more = [1]", r"more is '\[1\]', expected a list of texts"),
        ("words = [1, 2]", "--words has '1,2', expected letters"),
        ("prompts = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = config(tmp_path, text)
    app = make_app()

    @command(app, Outer)
    def act(request: Outer, words: list[str]) -> None:
        """Act."""

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=sentence) as caught:
        patch.setattr(sys, "argv", ["act", "--config", file, *([] if "prompts" in text else ["--prompts", "p"])])
        app()
    assert "\n" not in str(caught.value).removesuffix("\n")


def test_a_missing_file(tmp_path: Path) -> None:
    app = make_app()

    @command(app, Outer)
    def act(request: Outer, words: list[str]) -> None:
        """Act."""

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="cannot be read"):
        patch.setattr(sys, "argv", ["act", "--config", str(tmp_path / "none.toml")])
        app()
