"""The command line `mote-label`: behaviour and thinking language for each response of a JSONL file."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftri.endpoints import REASONING_FIELDS
from rewriter.console import make_app, run, say
from rewriter.errors import InputError
from rewriter.json_text import JsonError, printed_json, read_json
from rewriter.small_file import lines_of

if TYPE_CHECKING:
    from ftri.labels.judge import Judge
    from ftri.labels.responses import LabelSettings

NEEDED_KEYS = ("prompt", "text", "finish_reason")
# Responses judged together: the file is never in memory as a whole.
BATCH_SIZE = 256

app = make_app()


@app.command()
def label(
    responses: Annotated[
        str,
        typer.Argument(help="JSONL of objects with prompt, text and finish_reason; - reads stdin.", show_default=False),
    ],
    starts_inside_think: Annotated[
        bool,
        typer.Option(
            "--starts-inside-think",
            help="The template opened the think block. Seen by itself where objects have rendered_prompt.",
        ),
    ] = False,
    think_format: Annotated[
        str | None,
        typer.Option(
            help="How the model marks its thinking (harmony, gemma4, mistral, think, ...); told by the text where left out.",
            show_default=False,
        ),
    ] = None,
    label_cut: Annotated[
        bool, typer.Option("--label-cut", help="Label responses that ran into the token limit by what is there.")
    ] = False,
    canned: Annotated[bool, typer.Option("--canned", help="Add a flag for phrases of official statements.")] = False,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server whose model judges refusals.", show_default=False)
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.", show_default=False)] = None,
) -> None:
    """Print the same objects with behavior and thinking_language added, one per line.

    Thinking that a server has split off is read from reasoning_content or reasoning.

    Example: mote-label responses.jsonl > labelled.jsonl
    """
    if (judge_url is None) != (judge_model is None):
        raise InputError("--judge-url and --judge-model belong together: give both, or neither")
    from ftri.labels.coverage import coverage_warning, uncovered_language
    from ftri.labels.responses import LabelSettings, labelled
    from ftri.labels.think_formats import think_format as row_of

    settings = LabelSettings(label_cut, canned, starts_inside_think, row_of(think_format) if think_format else None)
    if judge_url is None or judge_model is None:
        unjudged: Counter[str] = Counter()
        num_responses = 0
        for entry in read_responses(responses):
            _print(labelled(entry, settings))
            num_responses += 1
            language = uncovered_language(_answer(entry, settings))
            if language is not None:
                unjudged[language] += 1
        if (warning := coverage_warning(unjudged, num_responses)) is not None:
            say(f"warning: {warning}")
        return
    from ftri.labels.judge import Judge, judge_endpoint

    judge = Judge(judge_endpoint(judge_url, judge_model))
    entries = read_responses(responses)
    while batch := list(islice(entries, BATCH_SIZE)):
        for entry in judged(batch, judge, settings):
            _print(entry)
    if judge.num_unclear:
        say(f"warning: {judge.num_unclear} answers got neither word from the judge and are UNPARSED")


def read_responses(name: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, or of stdin for `-`.

    Raises:
        InputError: the file cannot be read, or a line, which is named, is no response.
    """
    shown = "stdin" if name == "-" else Path(name).name
    try:
        file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from None
    with file:
        number = 0
        lines = lines_of(file, shown)
        while (line := _next_line(lines, shown, number + 1)) is not None:
            number += 1
            if line.strip():
                yield _entry(line, shown, number)
        if not number:
            raise InputError(f"{shown}: has no responses")


def _next_line(lines: Iterator[bytes], shown: str, number: int) -> str | None:
    try:
        line = next(lines, None)
        return None if line is None else line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: is not UTF-8 near line {number} ({error.reason}), expected JSONL") from None


def _entry(line: str, shown: str, number: int) -> dict[str, Any]:
    try:
        entry = read_json(line, finite=False)
    except JsonError as error:
        raise InputError(f"{shown}: line {number} is not JSON ({error})") from None
    missing = [key for key in NEEDED_KEYS if key not in entry] if isinstance(entry, dict) else list(NEEDED_KEYS)
    if missing:
        raise InputError(
            f"{shown}: line {number} has no {', '.join(missing)}; expected an object with {', '.join(NEEDED_KEYS)}"
        )
    for key in REASONING_FIELDS:
        if not isinstance(entry.get(key), str | None):
            raise InputError(f"{shown}: line {number} has {key} {_shown(entry[key])}, expected a string or null")
    # A server that splits the thinking off answers null where the token limit came before the answer.
    if not isinstance(entry["text"], str) and not (
        entry["text"] is None and any(entry.get(key) for key in REASONING_FIELDS)
    ):
        raise InputError(f"{shown}: line {number} has text {_shown(entry['text'])}, expected a string")
    return entry


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]


def judged(batch: list[dict[str, Any]], judge: Judge, settings: LabelSettings) -> Iterator[dict[str, Any]]:
    """The batch with refusals judged by a model; the think state stays with the rule, so cut-off responses are not sent."""
    from ftri.labels.names import UNDECIDED, Behavior
    from ftri.labels.responses import labelled

    by_rule = [labelled(entry, settings) for entry in batch]
    sent = [number for number, entry in enumerate(by_rule) if entry["behavior"] not in UNDECIDED]
    pairs = [(str(batch[number]["prompt"]), _answer(batch[number], settings)) for number in sent]
    verdicts = dict(zip(sent, judge.refuse_all(pairs), strict=True))
    for number, entry in enumerate(batch):
        if number not in verdicts:
            yield by_rule[number]
        elif (verdict := verdicts[number]) is None:
            yield by_rule[number] | {"behavior": Behavior.UNPARSED.value}
        else:
            yield labelled(entry, settings, verdict)


def _answer(entry: dict[str, Any], settings: LabelSettings) -> str:
    from ftri.labels.responses import split

    parsed, _ = split(entry, settings)
    return (parsed.answer if parsed else None) or str(entry["text"] or "").strip()


def _print(entry: dict[str, Any]) -> None:
    typer.echo(printed_json(json.dumps(entry, ensure_ascii=False)))


def main() -> None:
    """Entry point of `mote-label`."""
    run(app)


if __name__ == "__main__":
    main()
