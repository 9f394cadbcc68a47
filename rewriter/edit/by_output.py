"""Experts' outputs zeroed or scaled: the patches, in whatever format these are stored."""

from collections.abc import Iterator, Mapping

from rewriter.checkpoint.kinds import Model
from rewriter.edit.patches import ScaledOutput, TensorPatch, sha256
from rewriter.edit.scale import ScaledRange, scale_weight
from rewriter.edit.zero import Fill, StoredWeight, find_weight, zero_weight
from rewriter.errors import CheckpointError, PlanError
from rewriter.families.family import RouterLayout


def drop_outputs(checkpoint: Model, layout: RouterLayout, layer: int, experts: tuple[int, ...]) -> list[TensorPatch]:
    """The patches that zero the experts' outputs."""
    patches = []
    for expert in experts:
        for weight, row in _outputs(checkpoint, layout, layer, expert):
            patches += [_filled(checkpoint, fill) for fill in zero_weight(checkpoint, weight, row, layout.num_experts)]
    return patches


def scale_outputs(
    checkpoint: Model, layout: RouterLayout, layer: int, factors: Mapping[int, float]
) -> tuple[tuple[ScaledOutput, ...], list[TensorPatch]]:
    """The patches that multiply experts' outputs, and what rounding does to them.

    factors: expert -> what its output is multiplied with.

    Raises: CheckpointError for a format that cannot hold it; PlanError where the numbers cannot, or nothing would change.
    """
    scaled, patches = [], []
    for expert, factor in sorted(factors.items()):
        own, rounding = [], 0.0
        for weight, row in _outputs(checkpoint, layout, layer, expert):
            for part in scale_weight(checkpoint, weight, row, layout.num_experts, factor):
                patch, lost = _scaled(checkpoint, part, f"layer {layer} expert {expert}", factor)
                own.append(patch)
                rounding = max(rounding, lost)
        if all(patch.sha256_before == patch.sha256_after for patch in own):
            raise PlanError(
                f"layer {layer} expert {expert}: its output times {factor:g} is stored as the bytes that are there already (it is"
                " zero, or the factor is lost in rounding), expected one that changes something"
            )
        scaled.append(ScaledOutput(expert, factor, rounding))
        patches += own
    return tuple(scaled), patches


def _outputs(
    checkpoint: Model, layout: RouterLayout, layer: int, expert: int
) -> Iterator[tuple[StoredWeight, int | None]]:
    """The weights that make an expert's output, each with the expert's row where it is a stack of all."""
    alternatives = layout.expert_output_names(layer, expert)
    found = [[find_weight(checkpoint, name) for name in names] for names in alternatives]
    chosen = next((number for number, weights in enumerate(found) if all(weights)), None)
    if chosen is None:
        expected = " or ".join(" and ".join(names) for names in alternatives)
        raise CheckpointError(
            f"{checkpoint.source.name}: has no tensor {expected}, expected the output of expert {expert}"
        )
    for template, weight in zip(layout.family.expert_outputs[chosen], found[chosen], strict=True):
        assert weight is not None
        yield weight, None if "{expert}" in template else expert


def _filled(checkpoint: Model, fill: Fill) -> TensorPatch:
    """The patch that fills a range of a tensor with one byte."""
    before = checkpoint.read(fill.entry.part(fill.start, fill.size_bytes))
    after = bytes([fill.byte]) * fill.size_bytes
    hashes = sha256(before), sha256(after)
    return TensorPatch(fill.entry.name, fill.entry.shard, fill.start, fill.size_bytes, None, *hashes, fill=fill.byte)


def _scaled(checkpoint: Model, part: ScaledRange, place: str, factor: float) -> tuple[TensorPatch, float]:
    """The patch that multiplies a range of a tensor, and the share that rounding changes.

    Its bytes are worked out again when they are written: some experts' outputs are tens of megabytes.
    """
    entry = part.entry
    before = checkpoint.read(entry.part(part.start, part.size_bytes))
    try:
        after = part.scaling.apply(before)
    except ValueError as error:
        raise PlanError(f"{place}: its output times {factor:g} does not fit {entry.name} ({error})") from None
    hashes = sha256(before), sha256(after)
    patch = TensorPatch(entry.name, entry.shard, part.start, part.size_bytes, None, *hashes, scaling=part.scaling)
    return patch, part.scaling.rounding(before, after)
