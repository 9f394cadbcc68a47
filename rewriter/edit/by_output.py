"""Drop: the patches that zero experts' outputs, in whatever format these are stored."""

from rewriter.checkpoint.kinds import Model
from rewriter.edit.patches import TensorPatch, sha256
from rewriter.edit.zero import Fill, find_weight, zero_weight
from rewriter.errors import CheckpointError
from rewriter.families.family import RouterLayout


def drop_outputs(checkpoint: Model, layout: RouterLayout, layer: int, experts: tuple[int, ...]) -> list[TensorPatch]:
    """The patches that zero the experts' outputs."""
    patches = []
    for expert in experts:
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
            row = None if "{expert}" in template else expert
            patches += [_filled(checkpoint, fill) for fill in zero_weight(checkpoint, weight, row, layout.num_experts)]
    return patches


def _filled(checkpoint: Model, fill: Fill) -> TensorPatch:
    """The patch that fills a range of a tensor with one byte."""
    before = checkpoint.read(fill.entry.part(fill.start, fill.size_bytes))
    after = bytes([fill.byte]) * fill.size_bytes
    hashes = sha256(before), sha256(after)
    return TensorPatch(fill.entry.name, fill.entry.shard, fill.start, fill.size_bytes, None, *hashes, fill=fill.byte)
