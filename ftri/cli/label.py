"""The command line `mote-label`: behaviour and thinking language for each response of a JSONL file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter.console import make_app, run, say
from rewriter.errors import InputError

if TYPE_CHECKING:
    from ftri.labels.judge import Judge

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

    Example: mote-label responses.jsonl > labelled.jsonl
    """
    if (judge_url is None) != (judge_model is None):
        raise InputError("--judge-url and --judge-model belong together: give both, or neither")
    settings = {"label_cut": label_cut, "canned": canned, "starts_inside_think": starts_inside_think}
    if judge_url is None or judge_model is None:
        for entry in read_responses(responses):
            _print(labelled(entry, **settings))
        return
    from ftri.labels.judge import Judge, judge_endpoint

    judge = Judge(judge_endpoint(judge_url, judge_model))
    entries = read_responses(responses)
    while batch := list(islice(entries, BATCH_SIZE)):
        for entry in judged(batch, judge, **settings):
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
        file = sys.stdin if name == "-" else Path(name).open(encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from None
    with file:
        number = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _entry(line, shown, number)
        if not number:
            raise InputError(f"{shown}: has no responses")


def _entry(line: str, shown: str, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{shown}: line {number} is not JSON ({error.msg})") from None
    missing = [key for key in NEEDED_KEYS if key not in entry] if isinstance(entry, dict) else list(NEEDED_KEYS)
    if missing:
        raise InputError(
            f"{shown}: line {number} has no {', '.join(missing)}; expected an object with {', '.join(NEEDED_KEYS)}"
        )
    if not isinstance(entry["text"], str):
        raise InputError(f"{shown}: line {number} has text {json.dumps(entry['text'])[:40]}, expected a string")
    return entry


def labelled(
    entry: dict[str, Any],
    *,
    label_cut: bool,
    canned: bool,
    starts_inside_think: bool,
    refuses: bool | None = None,
) -> dict[str, Any]:
    """The object with its labels; `refuses` is a judge's verdict, None asks the rule."""
    from ftri.labels import behavior, contrast, refusals

    inside = starts_inside_think or contrast.starts_inside_think(str(entry.get("rendered_prompt") or ""))
    rule = refusals.is_refusal if refuses is None else lambda answer: refuses
    found = behavior.label_behavior(entry["text"], entry["finish_reason"], inside, label_cut, rule)
    added: dict[str, Any] = {
        "behavior": found.value,
        "thinking_language": behavior.thinking_language(entry["text"], inside),
    }
    if canned:
        added["canned"] = behavior.is_canned(entry["text"], inside)
    return entry | added


def judged(batch: list[dict[str, Any]], judge: Judge, **settings: bool) -> Iterator[dict[str, Any]]:
    """The batch with refusals judged by a model; the think state stays with the rule, so cut-off responses are not sent."""
    from ftri.labels.behavior import Behavior

    by_rule = [labelled(entry, **settings) for entry in batch]
    undecided = {Behavior.TRUNCATED, Behavior.UNPARSED}
    sent = [number for number, entry in enumerate(by_rule) if entry["behavior"] not in undecided]
    pairs = [(str(batch[number]["prompt"]), _answer(batch[number]["text"])) for number in sent]
    verdicts = dict(zip(sent, judge.refuse_all(pairs), strict=True))
    for number, entry in enumerate(batch):
        if number not in verdicts:
            yield by_rule[number]
        elif (verdict := verdicts[number]) is None:
            yield by_rule[number] | {"behavior": Behavior.UNPARSED.value}
        else:
            yield labelled(entry, refuses=verdict, **settings)


def _answer(text: str) -> str:
    return text.rpartition("</think>")[2].strip()


def _print(entry: dict[str, Any]) -> None:
    typer.echo(json.dumps(entry, ensure_ascii=False))


def main() -> None:
    """Entry point of `mote-label`."""
    run(app)
