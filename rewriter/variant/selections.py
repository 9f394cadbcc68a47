"""Whether a GGUF variant ever selected a suppressed expert, by the counts of llama-imatrix."""

from dataclasses import dataclass
from pathlib import Path

from rewriter.checkpoint.gguf.imatrix import SelectionCounts, read_counts
from rewriter.edit.record import VariantRecord
from rewriter.errors import InputError, VerificationError
from rewriter.families.family import RouterLayout
from rewriter.semantics import SUPPRESS


@dataclass(frozen=True)
class Selection:
    """How often a suppressed expert was selected."""

    layer: int
    expert: int
    count: int
    num_tokens: int
    base_share: float | None  # of the base's tokens that selected it, where the base's counts are known


def check_selections(
    record: VariantRecord, layout: RouterLayout, imatrix: Path | None, base_imatrix: Path | None
) -> list[Selection]:
    """The counts of the suppressed experts, which must be zero where the edit rules them out; empty where no file is given.

    Raises:
        InputError: only the base's file is given, or nothing was rerouted, so that counts say nothing.
        CheckpointError: a file is not llama-imatrix's.
        VerificationError: a file is of another model, or an expert that is ruled out was selected.
    """
    if imatrix is None:
        if base_imatrix is not None:
            raise InputError("--base-imatrix goes with --imatrix, the variant's counts")
        return []
    rerouted = [one for one in record.edits_in_force() if one.action == SUPPRESS and (one.edits_bias or one.edits_row)]
    if not rerouted:
        raise InputError(
            "--imatrix: this variant reroutes no expert; a dropped one is still selected, its output is zero"
        )
    ours = _read(imatrix, layout)
    theirs = _read(base_imatrix, layout) if base_imatrix is not None else None
    selections = []
    for one in rerouted:
        count, num_tokens = int(ours.counts[one.layer][one.expert]), ours.num_tokens[one.layer]
        if count and one.rules_out_selection:
            raise VerificationError(
                f"{imatrix}: layer {one.layer} expert {one.expert} was selected {count} times by {num_tokens} tokens, expected"
                " 0: it is suppressed"
            )
        share = float(theirs.counts[one.layer][one.expert]) / theirs.num_tokens[one.layer] if theirs else None
        selections.append(Selection(one.layer, one.expert, count, num_tokens, share))
    return selections


def _read(path: Path, layout: RouterLayout) -> SelectionCounts:
    """A file's counts, checked against the model."""
    found = read_counts(path)
    for layer in layout.moe_layers:
        values = found.counts.get(layer)
        size = None if values is None else values.size
        if size != layout.num_experts:
            raise VerificationError(
                f"{path}: counts {size} experts in layer {layer}, expected {layout.num_experts}: it is of another model"
            )
    return found
