"""Answers of the base taken over from a recording of mote-record, so that they are not asked for again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.answers.arms import Answer, Arm, Request, answer_key
from eval.answers.journal import Journal
from ftri.labels.think_formats import ThinkFormat, starts_inside_think
from ftri.traces.reader import TraceReader
from rewriter.errors import InputError


def take_over(
    folder: Path,
    journal: Journal,
    identity: Mapping[str, Any],
    arm: Arm,
    requests: Sequence[Request],
    told: ThinkFormat | None = None,
) -> int:
    """Put the recorded answers to greedy `requests` into the journal; returns how many the recording holds.

    `told` is the model's thinking format, where it is known.

    Raises:
        InputError: the recording is of another model, template, engine or sampling than the run, or of other prompts.
        TraceError: the folder is damaged.
    """
    reader = TraceReader(folder)
    check_same(folder, reader.manifest, identity, requests[0].sampling.max_tokens)
    asked = {(request.prompt_id, request.sample): request for request in requests}
    taken = 0
    for record in reader.metadata():
        request = asked.get(record.key)
        if request is None:
            continue
        (_, text), *more = request.messages
        if more or text != record.prompt:
            raise InputError(
                f"{folder}: the prompt {record.prompt_id!r} was recorded with another text, expected that of --prompts"
            )
        answer = Answer(
            prompt_id=record.prompt_id,
            sample=record.sample,
            text=record.text,
            finish_reason=record.finish_reason,
            starts_inside_think=starts_inside_think(record.rendered_prompt, told),
            prompt_token_ids=record.prompt_token_ids,
            token_ids=record.completion_token_ids,
        )
        journal.add_answer(answer_key(dict(identity), arm, request), arm.name, answer)
        taken += 1
    journal.sync()
    return taken


def check_same(folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any], max_tokens: int) -> None:
    """See to it that a recording's answers are those that the run would get.

    Raises:
        InputError: naming the first thing that differs.
    """
    sampling = manifest.get("sampling") or {}
    pairs = [(name, manifest.get(name), identity.get(name)) for name in ("content_sha256", "template_sha256")]
    pairs.append(("engine_arguments", dict(manifest.get("engine_arguments") or {}), dict(identity["engine_arguments"])))
    pairs.append(("temperature", sampling.get("temperature"), 0.0))
    pairs.append(("max_tokens", sampling.get("max_tokens"), max_tokens))
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise InputError(f"{folder}: was recorded with the {name} {str(theirs)[:80]}, expected {str(ours)[:80]}")
