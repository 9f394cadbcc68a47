"""Writes a served variant: all weights linked from the base, a config of its own, the other files copied."""

import filecmp
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewriter.checkpoint.edited_json import config_text
from rewriter.checkpoint.other_files import CARD_NAME
from rewriter.checkpoint.reader import CONFIG_NAME, Checkpoint
from rewriter.edit.dial import ServedRecord, ServedSet, base_config, read_served
from rewriter.edit.record import without_record
from rewriter.errors import VerificationError
from rewriter.semantics import DROP, DROP_RENORM, SERVED_MEANINGS, STIMULATE, SUPPRESS
from rewriter.variant.card import (
    RESULTS_NOT_MEASURED,
    SAFETY_NOT_MEASURED,
    front_matter,
    licence_words,
    serve_line,
)
from rewriter.variant.card_parts import RESULTS_BLOCK, SAFETY_BLOCK, block, join_card, split_card
from rewriter.variant.copying import LinkMode, Progress, place_unchanged
from rewriter.variant.markdown import inline
from rewriter.variant.other_content import check_other_files
from rewriter.variant.output_folder import OutputFolder
from rewriter.variant.write import copy_other_files, explained, ignore, shown_folder, state_of_base, write_text


@dataclass(frozen=True)
class ServedResult:
    """What was written, for people and for scripts."""

    folder: str
    base: str
    sets: dict[str, str]  # name -> semantics
    default: str | None
    shards: dict[str, int]  # how they came over -> number
    serve: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The result for people."""
        shards = ", ".join(f"{count} {how}" for how, count in self.shards.items())
        return [
            self.folder,
            f"  sets: {', '.join(f'{name} ({semantics})' for name, semantics in self.sets.items())}",
            f"  every other request: {self.default or 'the base'}",
            f"  shards: {shards}, none changed",
            f"  serve (with this package beside vLLM): {self.serve}",
        ]


def emit_served(
    record: ServedRecord,
    config: dict[str, Any],
    base: Path,
    target: Path,
    link: LinkMode,
    *,
    overwrite: bool = False,
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> ServedResult:
    """Write the folder; it appears complete and checked, or not at all.

    Raises:
        OutputError: for a target that exists, is in use, lies in the base, or cannot be written.
        CheckpointError: for a base that is damaged, or that changes while it is copied.
    """
    checkpoint = Checkpoint.open(base)
    methods: Counter[str] = Counter()
    with OutputFolder(target, base, overwrite=overwrite) as output:
        before = state_of_base(checkpoint)
        total = sum(map(checkpoint.shard_size, checkpoint.shards))
        try:
            with progress(total) if progress else nullcontext(ignore) as report:
                for shard in checkpoint.shards:
                    methods[place_unchanged(base / shard, output.partial / shard, link, report)] += 1
            copy_other_files(checkpoint, output.partial)
            write_text(output.partial / CARD_NAME, card(record, target.name, checkpoint))
            write_text(output.partial / CONFIG_NAME, config_text(config))
            before.check_unchanged()
            read_served(Checkpoint.open(output.partial).config, target.name)
        except OSError as error:
            raise explained(error, base, target) from None
        output.commit()
    return ServedResult(
        str(target),
        str(base),
        {name: one.semantics for name, one in record.sets.items()},
        record.default,
        dict(sorted(methods.items())),
        serve_line(shown_folder(target), checkpoint),
    )


@dataclass(frozen=True)
class ServedProof:
    """What was proven of a served variant, and the files that there is nothing to compare with."""

    record: ServedRecord
    not_compared: list[str]


def verify_served(variant: Path, base: Path) -> ServedProof:
    """Prove that a served variant has the base's weights and other files, byte for byte, and its config but for the record.

    Raises:
        RecordError: for a record that is damaged or of another model.
        VerificationError: with the first difference.
    """
    ours, theirs = Checkpoint.open(variant), Checkpoint.open(base)
    record = read_served(ours.config, ours.source.name)
    if base_config(ours.config) != without_record(theirs.config):
        raise VerificationError(f"{variant}/config.json: differs from the base's by more than the mote block says")
    if ours.weight_map != theirs.weight_map:
        raise VerificationError(f"{variant}: its index differs from the base's")
    not_compared = check_other_files(ours, theirs, record.base_folder)
    for shard in theirs.shards:
        ours.check_whole(shard)
        first, second = variant / shard, base / shard
        if not os.path.samefile(first, second) and not filecmp.cmp(first, second, shallow=False):
            raise VerificationError(f"{first}: differs from the base's, expected the same bytes")
    return ServedProof(record, not_compared)


def card(record: ServedRecord, name: str, checkpoint: Checkpoint) -> str:
    """The folder's README.md, with the licence and the terms of access of the base's."""
    try:
        base_data, _ = split_card(checkpoint.card() or "")
        terms = licence_words(base_data)
    except ValueError as error:
        base_data, terms = {}, f"The metadata of the base's card could not be read ({error}); add its licence by hand."
    of = inline(record.base_model or record.base_folder or "its base")
    lines = [
        f"# {inline(name)}",
        "",
        f"The weights of {of}, unchanged. What differs is done by the server: `vllm serve` with the package"
        " mote-tunable-experts installed beside it. Without the package every runtime refuses this folder.",
        "",
    ]
    if record.has_dial:
        chosen = next(iter(record.sets))
        # Some reroutes have no parts, and the server refuses a strength between.
        strength = ', "mote_strength": 0.5' if record.sets[chosen].semantics in (DROP, DROP_RENORM) else ""
        lines += [
            'A request chooses by `vllm_xargs`, for example `{"mote": "' + chosen + '"' + strength + "}`;"
            ' `"mote": "none"` is the base, which is also what a request without a choice gets.'
            if record.default is None
            else f"A request chooses by `vllm_xargs`; without a choice it gets `{record.default}`.",
            "",
        ]
    else:
        lines += [f"Every request gets the set `{record.default}`.", ""]
    for set_name, one in record.sets.items():
        lines += [
            f"## {set_name}",
            "",
            *_meaning(one),
            *(f"- suppressed: layer {layer} expert {expert}" for layer, expert in one.suppress),
            *(f"- stimulated: layer {layer} expert {expert}" for layer, expert in one.stimulate),
            "",
        ]
    lines += ["## Results", "", block(RESULTS_BLOCK, RESULTS_NOT_MEASURED), ""]
    lines += ["## Refusals that protect people", "", block(SAFETY_BLOCK, SAFETY_NOT_MEASURED), ""]
    lines += ["## Licence and terms", "", terms, ""]
    semantics = [one.semantics for one in record.sets.values()]
    # No library of the Hub's loads it, so none is named, nor the base's.
    metadata = front_matter(base_data, semantics, record.base_model, None)
    metadata.pop("library_name", None)
    return join_card(metadata, "\n".join(lines))


def _meaning(one: ServedSet) -> list[str]:
    """What a set does to the experts that it has, a paragraph an action."""
    meanings = SERVED_MEANINGS[one.semantics]
    down = [meanings[SUPPRESS], ""] if one.suppress else []
    return down + ([meanings[STIMULATE], ""] if one.stimulate else [])
