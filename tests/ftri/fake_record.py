"""What mote-record does once its engine runs, on made-up responses: the trace writer and the recorder's writing behind it."""

import sys
from collections.abc import Iterator
from pathlib import Path

from made_traces import MANIFEST, make_record

import ftri.record
from ftri.engine.engine import Generation
from ftri.prompts.rendering import RenderedPrompt
from ftri.record import write_behind
from ftri.traces.writer import TraceWriter

NUM_RESPONSES = 60
NUM_PER_STEP = 3


def steps(completed: set[tuple[str, int]]) -> Iterator[list[Generation]]:
    """The responses that the folder lacks, some at a time, as an engine finishes them."""
    left = [made for made in map(make_record, range(NUM_RESPONSES)) if made.key not in completed]
    for first in range(0, len(left), NUM_PER_STEP):
        yield [
            Generation(
                prompt=RenderedPrompt(
                    made.prompt_id, made.prompt, made.rendered_prompt, made.prompt_token_ids, None, made.factors
                ),
                index=first + place,
                sample=made.sample,
                token_ids=made.completion_token_ids,
                text=made.text,
                finish_reason=made.finish_reason,
                experts=made.experts,
            )
            for place, made in enumerate(left[first : first + NUM_PER_STEP])
        ]


def main() -> None:
    """Fill the trace folder that is named, from where it ends; chunks are small, so that many are finished."""
    ftri.record.MOST_WAITING = NUM_PER_STEP  # a write for every step, so that there are many to be killed in
    with TraceWriter(Path(sys.argv[1]), MANIFEST, chunk_size_bytes=3000) as writer:
        writer.note(versions={"python": "3"})
        for _ in write_behind(writer, steps(set(writer.completed))):
            pass


if __name__ == "__main__":
    main()
