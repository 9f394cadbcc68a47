"""How much of a resonance other things than the behaviour predict: the length of the prompts, and which tokens they hold.

Both are decompositions with a plain reading: "if only the classes' lengths (or tokens) differed, and experts reacted to them
as they do within each class, this share of the resonance would be there all the same".

Letters of shapes: P responses, L MoE layers, E experts, V token ids, M experts looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis.maps import ActivationMaps
from ftri.analysis.tokens import TokenStudy

FloatArray = npt.NDArray[np.floating[Any]]


def length_share(maps: ActivationMaps, resonance: FloatArray) -> FloatArray:
    """[L * E]: the part of each expert's resonance that the classes' difference in counted tokens predicts.

    The slope of counts on tokens is taken within the classes (pooled), so that the behaviour itself does not enter it; where
    lengths do not vary within the classes, it is the expert's selections per token.
    """
    lengths = maps.num_tokens.astype(np.float64)
    masks = np.stack([maps.groups == 0, maps.groups > 0]).astype(np.float64)
    sizes = masks.sum(axis=1)
    counts = maps.counts.weighted_sums(masks)
    products = maps.counts.weighted_sums(masks * lengths)
    means = masks @ lengths / sizes
    covariance = sum(products[group] - counts[group] * means[group] for group in (0, 1))
    variance = sum(float(masks[group] @ (lengths - means[group]) ** 2) for group in (0, 1))
    slope = covariance / variance if variance > 0 else counts.sum(axis=0) / max(float(lengths.sum()), 1.0)
    return _share(slope * (means[0] - means[1]), resonance)


def token_share(
    study: TokenStudy, num_class: int, num_others: int
) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
    """How much the mix of tokens predicts of each expert's resonance: (share [M], strongest token id [M], its share [M]).

    Each token's selection rate is the mean of its rates in both groups (Kitagawa's decomposition), so what is left is
    experts reacting differently to the same tokens.
    """
    sizes = np.array([num_class, num_others], np.float64)[:, None]
    frequency = study.num_tokens / sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = study.num_selected / study.num_tokens[None]
    # A token that only one group has says nothing about a difference in rates.
    rate = np.nan_to_num(
        np.where(np.isnan(rates).any(axis=1), np.nansum(np.nan_to_num(rates), axis=1), rates.mean(axis=1))
    )
    predicted = rate * (frequency[0] - frequency[1])
    resonance = (study.num_selected / sizes[None]).sum(axis=2)
    resonance = resonance[:, 0] - resonance[:, 1]
    strongest = predicted.argmax(axis=1)
    rows = np.arange(len(predicted))
    shares = _share(predicted.sum(axis=1), resonance), _share(predicted[rows, strongest], resonance)
    return shares[0], study.token_ids()[strongest], shares[1]


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole != 0)
