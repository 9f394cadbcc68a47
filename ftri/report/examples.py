"""What a report draws besides the ranking: a few prompts with every token's experts, and all prompts laid out in a plane.

Letters of shapes: T tokens of a response, P responses, L MoE layers, E experts, K selected experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftri.analysis.maps import ActivationMaps, Observation

if TYPE_CHECKING:
    from ftri.traces.reader import TraceReader

MAX_EXAMPLE_TOKENS = 96
EXAMPLES_PER_LABEL = 2
MAX_PLANE_PROMPTS = 2000
MIN_PLANE_PROMPTS = 8
PLANE_COMPONENTS = 50
PREVIEW_CHARACTERS = 160


@dataclass(frozen=True)
class Example:
    """A response shown token by token; `experts` [T, L, K] of its first tokens, of which `num_prompt` are the prompt's.

    `is_cut`: the prompt is longer than that, and `num_prompt` is T.
    """

    observation: Observation
    prompt: str
    token_ids: tuple[int, ...]
    num_prompt: int
    is_cut: bool
    experts: npt.NDArray[Any]


@dataclass(frozen=True)
class Plane:
    """t-SNE of the maps: `rows` [n] of the observations drawn, `positions` [n, 2], `texts` n (prompt, start of answer).

    `num_components`: principal components that the maps were reduced to before.
    """

    rows: npt.NDArray[np.int64]
    positions: npt.NDArray[np.floating[Any]]
    perplexity: float
    num_components: int
    texts: list[tuple[str, str]]


def label_means(maps: ActivationMaps, labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean tokens per prompt of every expert under each of C labels: [C, L * E]."""
    present = np.array([observation.label for observation in maps.observations])
    weights = np.stack([present == label for label in labels]).astype(np.float64)
    return maps.counts.weighted_sums(weights) / weights.sum(axis=1, keepdims=True)


def typical_rows(maps: ActivationMaps, per_label: int = EXAMPLES_PER_LABEL) -> list[int]:
    """For each label, the responses whose maps lie closest to the label's mean map."""
    labels = np.array([observation.label for observation in maps.observations])
    names = sorted(set(labels.tolist()), key=lambda name: (min(maps.groups[labels == name]), name))
    means = label_means(maps, names)
    own_mean = np.array([names.index(label) for label in labels.tolist()])
    distances = np.empty(len(maps.counts))
    for start, block in maps.counts.blocks():
        rows = slice(start, start + len(block))
        distances[rows] = ((block - means[own_mean[rows]]) ** 2).sum(axis=1)
    chosen: list[int] = []
    for name in names:
        members = np.flatnonzero(labels == name)
        chosen += members[np.argsort(distances[members], kind="stable")[:per_label]].tolist()
    return chosen


def load_examples(readers: Sequence[TraceReader], maps: ActivationMaps, rows: Sequence[int]) -> list[Example]:
    """The responses of these rows with their experts, in the order of `rows`."""
    wanted = {(maps.observations[row].prompt_id, maps.observations[row].sample): row for row in rows}
    found: dict[int, Example] = {}
    for reader in readers:
        for record in reader:
            row = wanted.get(record.key)
            if row is not None:
                experts = np.array(record.experts[:MAX_EXAMPLE_TOKENS])
                token_ids = [*record.prompt_token_ids, *record.completion_token_ids][: len(experts)]
                num_prompt = min(len(record.prompt_token_ids), len(experts))
                is_cut = num_prompt < len(record.prompt_token_ids)
                found[row] = Example(
                    maps.observations[row], record.prompt, tuple(token_ids), num_prompt, is_cut, experts
                )
    return [found[row] for row in rows if row in found]


def load_texts(readers: Sequence[TraceReader], maps: ActivationMaps, rows: Sequence[int]) -> list[tuple[str, str]]:
    """(prompt, start of the answer) of these rows, in the order of `rows`."""
    wanted = {(maps.observations[row].prompt_id, maps.observations[row].sample): row for row in rows}
    found = {
        wanted[record.key]: (record.prompt, record.text[:PREVIEW_CHARACTERS])
        for reader in readers
        for record in reader.metadata()
        if record.key in wanted
    }
    return [found.get(row, ("", "")) for row in rows]


def lay_out(readers: Sequence[TraceReader], maps: ActivationMaps, seed: int = 0) -> Plane | None:
    """t-SNE of the maps (paper, Fig. 4) after a reduction by principal components; None with fewer than 8 responses.

    Of more than 2,000 responses an even selection is drawn.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    total = len(maps.counts)
    if total < MIN_PLANE_PROMPTS:
        return None
    rows = np.unique(np.linspace(0, total - 1, min(total, MAX_PLANE_PROMPTS)).round().astype(np.int64))
    values = np.concatenate(
        [block[rows[(rows >= start) & (rows < start + len(block))] - start] for start, block in maps.counts.blocks()]
    )
    components = min(PLANE_COMPONENTS, len(rows) - 1, values.shape[1])
    reduced = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(values)
    # Equal maps would all fall on one point: a hair of noise keeps t-SNE's distances finite and the points apart.
    reduced += np.random.default_rng(seed).normal(0, 1e-6 + 1e-4 * reduced.std(), reduced.shape)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # One thread: the many short parallel sections wait for each other as soon as the machine has anything else to do.
    with threadpool_limits(1):
        positions = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return Plane(rows, positions, perplexity, components, load_texts(readers, maps, rows.tolist()))
