"""Tensor-name templates that several rows of the family table share."""

LAYERS = "layers.{layer}."
# A language model inside a multimodal one: transformers' own order, the older one, and the language model saved alone.
MULTIMODAL = ("model.language_model.", "language_model.model.", "model.")
TEXT = ("model.",)

# An expert's output as published, stacked as transformers 5 saves it again, and numbered behind (ModelOpt's export).
DOWN_PROJ = ("mlp.experts.{expert}.down_proj.weight", "mlp.experts.down_proj", "mlp.experts.down_proj.{expert}.weight")
W2 = ("block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_proj")


def names(tail: str, prefixes: tuple[str, ...] = TEXT) -> tuple[str, ...]:
    """The alternatives for one tensor of a layer: `tail` below each prefix's layers."""
    return tuple(f"{prefix}{LAYERS}{tail}" for prefix in prefixes)


def outputs(*tails: str, prefixes: tuple[str, ...] = TEXT) -> tuple[tuple[str, ...], ...]:
    """The alternatives for an expert's output that is one tensor, for each prefix and each of `tails`."""
    return tuple((name,) for tail in tails for name in names(tail, prefixes))
