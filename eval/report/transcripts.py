"""Every transcript, side by side: one line a prompt with the answers of all arms; and the few that a report shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.answers.journal import Journal
from eval.measures.measure import SideBySide
from eval.outcomes.observed import Outcomes
from eval.results import Example, ExampleAnswer
from rewriter.whole_file import whole_file

FILE_NAME = "transcripts.jsonl"
NUM_EXAMPLES_PER_KIND = 2


def write_transcripts(path: Path, parts: Sequence[SideBySide], journal: Journal) -> dict[str, Any]:
    """Write all parts in one step; returns the file's name, number of lines and SHA-256."""
    checksum = hashlib.sha256()
    num_lines = 0
    with whole_file(path) as file:
        for line in _lines(parts, journal):
            encoded = json.dumps(line, ensure_ascii=False).encode("utf-8", errors="surrogatepass") + b"\n"
            checksum.update(encoded)
            file.write(encoded)
            num_lines += 1
    return {"file": path.name, "lines": num_lines, "sha256": checksum.hexdigest(), "journal": journal.path.name}


def _lines(parts: Sequence[SideBySide], journal: Journal) -> Iterator[dict[str, Any]]:
    for part in parts:
        for position, request in enumerate(part.requests):
            yield {
                "part": part.part,
                "prompt_id": request.prompt_id,
                "sample": request.sample,
                "messages": [{"role": role, "content": content} for role, content in request.messages],
                "answers": {one.arm.name: _answer(one, position, journal) for one in part.outcomes},
            }


def _answer(outcomes: Outcomes, position: int, journal: Journal) -> dict[str, Any]:
    answer = journal.answer(outcomes.keys[position])
    return {
        "label": outcomes.behaviors[position],
        "thinking_language": outcomes.languages[position],
        "looping": outcomes.looping[position],
        "garbled": outcomes.garbled[position],
        "canned": outcomes.canned[position],
        "finish_reason": answer.finish_reason,
        "text": answer.text,
    }


def choose_examples(
    part: SideBySide, base: Outcomes, primary: Outcomes, axis: Any, label: str, journal: Journal
) -> list[Example]:
    """A few prompts of each kind of change between the base and the variant, spread over the prompts: no picking by looks."""
    before, after = base.labels(axis), primary.labels(axis)
    damaged = [now and not then for then, now in zip(base.damaged(), primary.damaged(), strict=True)]
    kinds = {
        f"left {label}": [b == label != a for b, a in zip(before, after, strict=True)],
        f"became {label}": [b != label == a for b, a in zip(before, after, strict=True)],
        "damaged": damaged,
        f"stayed {label}": [b == label == a for b, a in zip(before, after, strict=True)],
        "other, unchanged": [b == a != label for b, a in zip(before, after, strict=True)],
    }
    examples: list[Example] = []
    for why, matches in kinds.items():
        # Spread over the prompts, since neighbours are often about the same thing.
        positions = [position for position, match in enumerate(matches) if match]
        step = max(1, len(positions) // NUM_EXAMPLES_PER_KIND)
        for position in positions[::step][:NUM_EXAMPLES_PER_KIND]:
            request = part.requests[position]
            examples.append(
                Example(
                    prompt_id=request.prompt_id,
                    prompt=request.messages[-1][1],
                    why=why,
                    answers=[_example_answer(one, position, axis, journal) for one in part.outcomes],
                )
            )
    return examples


def _example_answer(outcomes: Outcomes, position: int, axis: Any, journal: Journal) -> ExampleAnswer:
    answer = journal.answer(outcomes.keys[position])
    return ExampleAnswer(
        arm=outcomes.arm.name,
        label=outcomes.labels(axis)[position],
        text=answer.text,
        finish_reason=answer.finish_reason,
    )
