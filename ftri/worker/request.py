"""What the engine writes for the workers to read, a request's edit and what is to be recorded; needs neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The key of a request's `extra_args` under which ftri's engine puts its edit: {"key": text, "edit": RequestEdit.as_plain()}.
EDIT_ARGUMENT = "mote_edit"
# Those under which a request to a served variant chooses (ftri.worker.dial).
NAME_ARGUMENT = "mote"
STRENGTH_ARGUMENT = "mote_strength"


@dataclass(frozen=True)
class ServedChoice:
    """What a request chooses of a served variant with a dial: the name of a set, or "none", and a strength of 0 to 1."""

    name: str
    strength: float = 1.0

    def as_arguments(self) -> dict[str, Any]:
        """As the request carries it, here and over HTTP (`vllm_xargs`)."""
        return {NAME_ARGUMENT: self.name, STRENGTH_ARGUMENT: self.strength}


@dataclass(frozen=True)
class RequestEdit:
    """An edit as a request carries it to the workers, in plain numbers.

    bias: (model layer, expert, value): the selection bias that the expert gets; where the router has none, what is added to
    its score for the choice. factor: (model layer, expert, value): what its weight is multiplied with where it is selected.
    centroid: (model layer, expert): its logit becomes the mean logit of the layer's others, as a checkpoint's row can make it.
    stimulate: (model layer, expert): added to the selection with the largest weight, times `strength`. `renormalize`: the
    weights of a token that was touched keep their sum.
    """

    bias: Sequence[tuple[int, int, float]] = ()
    factor: Sequence[tuple[int, int, float]] = ()
    stimulate: Sequence[tuple[int, int]] = ()
    renormalize: bool = False
    strength: float = 1.0
    centroid: Sequence[tuple[int, int]] = ()

    def as_plain(self) -> dict[str, Any]:
        """As vLLM's transports carry it."""
        return {
            "bias": [list(entry) for entry in self.bias],
            "factor": [list(entry) for entry in self.factor],
            "stimulate": [list(entry) for entry in self.stimulate],
            "renormalize": self.renormalize,
            "strength": self.strength,
            "centroid": [list(entry) for entry in self.centroid],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RequestEdit:
        """The edit that as_plain made."""
        return cls(
            bias=[(layer, expert, value) for layer, expert, value in plain["bias"]],
            factor=[(layer, expert, value) for layer, expert, value in plain["factor"]],
            stimulate=[(layer, expert) for layer, expert in plain["stimulate"]],
            renormalize=plain["renormalize"],
            strength=plain["strength"],
            centroid=[(layer, expert) for layer, expert in plain["centroid"]],
        )


# Under this name a model's config says what is to be recorded: "NUM_CHOICES weights edits", the last two where wanted.
RECORDING_KEY = "mote_recording"


@dataclass(frozen=True)
class Recording:
    """What ftri's engine wants of the routers: ids below `num_choices` written down, their weights, per-request edits."""

    num_choices: int
    keeps_weights: bool
    has_edits: bool

    def as_override(self) -> dict[str, str]:
        """The entry of vLLM's hf_overrides, which reaches the model's constructor in every worker."""
        words = [str(self.num_choices), *["weights"] * self.keeps_weights, *["edits"] * self.has_edits]
        return {RECORDING_KEY: " ".join(words)}


def recording_of(config: Any) -> Recording | None:
    """What a model's config says of recording; None for nothing."""
    words = str(getattr(config, RECORDING_KEY, None) or "").split()
    return Recording(int(words[0]), "weights" in words, "edits" in words) if words else None
