"""The selection counts in a file of llama-imatrix: how often each expert of each layer was selected, exactly.

The file is a GGUF whose `blk.N.ffn_down_exps.weight.counts` count one for each token and selected expert, and whose
`blk.N.ffn_gate_inp.weight.counts` count tokens (llama.cpp: tools/imatrix/imatrix.cpp). Legend: E routed experts.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewriter.checkpoint.gguf.files import read_range
from rewriter.checkpoint.gguf.header import GgufHeader, read_header
from rewriter.checkpoint.source import LocalFolder, TensorEntry
from rewriter.errors import CheckpointError

TYPE_KEY, TYPE = "general.type", "imatrix"
CHUNK_SIZE_KEY = "imatrix.chunk_size"
SELECTIONS = re.compile(r"blk\.(\d+)\.ffn_down_exps\.weight\.counts")
TOKENS = "blk.{layer}.ffn_gate_inp.weight.counts"


@dataclass(frozen=True)
class SelectionCounts:
    """What one file counted, by model layer."""

    name: str
    counts: dict[int, NDArray[Any]]  # [E] float64, selections of each expert
    num_tokens: dict[int, int]  # that the layer's router saw
    context_tokens: int | None  # tokens that were evaluated together

    @property
    def top_k(self) -> int:
        """Experts that a token selects."""
        layer = next(iter(self.counts))
        return round(float(self.counts[layer].sum()) / self.num_tokens[layer])


def read_counts(path: Path) -> SelectionCounts:
    """The counts in a file of llama-imatrix.

    Raises:
        CheckpointError: the file is none of its GGUF files, holds no experts' counts, or counts that contradict each other.
    """
    source = LocalFolder(path.parent)
    if source.size_bytes(path.name) and source.read(path.name, 0, 4) != b"GGUF":
        raise CheckpointError(
            f"{path}: is not a GGUF file; write an older imatrix anew with llama-imatrix --in-file {path.name}"
            " --output-format gguf"
        )
    header = read_header(source, path.name)
    if header.text(TYPE_KEY) != TYPE:
        raise CheckpointError(
            f"{path}: its {TYPE_KEY} is {header.text(TYPE_KEY)!r}, expected {TYPE!r}, as llama-imatrix writes"
        )
    counts: dict[int, NDArray[Any]] = {}
    num_tokens: dict[int, int] = {}
    for name, entry in header.tensors.items():
        match = SELECTIONS.fullmatch(name)
        if match:
            layer = int(match[1])
            counts[layer] = _floats(source, entry, path)
            num_tokens[layer] = _tokens(source, header, layer, path)
    if not counts:
        raise CheckpointError(f"{path}: holds no counts of experts, expected blk.N.ffn_down_exps.weight.counts")
    found = SelectionCounts(
        path.name, dict(sorted(counts.items())), dict(sorted(num_tokens.items())), header.integer(CHUNK_SIZE_KEY)
    )
    for layer, values in found.counts.items():
        # Counts are kept as float32, which is exact up to 16.8 million only.
        if abs(values.sum() - found.top_k * num_tokens[layer]) > 1e-6 * values.sum():
            raise CheckpointError(
                f"{path}: layer {layer} counts {values.sum():.0f} selections by {num_tokens[layer]} tokens, expected"
                f" {found.top_k} a token"
            )
    return found


def _tokens(source: LocalFolder, header: GgufHeader, layer: int, path: Path) -> int:
    """How many tokens a layer's router saw."""
    entry = header.tensors.get(TOKENS.format(layer=layer))
    values = _floats(source, entry, path) if entry is not None else np.zeros(0)
    if values.size != 1 or not values[0] > 0:
        raise CheckpointError(f"{path}: {TOKENS.format(layer=layer)} is missing or not a positive number")
    return int(values[0])


def _floats(source: LocalFolder, entry: TensorEntry, path: Path) -> NDArray[Any]:
    """A tensor of counts as float64."""
    if entry.dtype != "F32":
        raise CheckpointError(f"{path}: {entry.name} is {entry.dtype}, expected F32")
    values = np.frombuffer(read_range(source, entry.shard, entry.offset, entry.size_bytes), "<f4").astype(np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise CheckpointError(f"{path}: {entry.name} holds a count that is negative or no number")
    return values
