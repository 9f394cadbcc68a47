"""What is asked of whom: arms (the base, a variant, a control) and requests, each with a key that survives a restart.

A key depends on everything that decides an answer and on nothing else, so a rerun finds what it has, an arm under another
name is not run twice, and a changed option never picks up an old answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ftri.labels.think_formats import ThinkFormat
from rewriter.semantics import Semantics

Pair = tuple[int, int]
Shift = tuple[int, int, float]  # (model layer, expert, bias shift)
Factor = tuple[int, int, float]  # (model layer, expert, what its output is multiplied with)
ArmKind = Literal["base", "repeat", "variant", "other", "sweep", "control"]
BASE = "base"
REPEAT = "base-again"
VARIANT = "variant"


@dataclass(frozen=True)
class Arm:
    """One model under test: a checkpoint folder or a server, with a live edit or none."""

    name: str
    kind: ArmKind
    semantics: Semantics | None = None
    suppress: tuple[Pair, ...] = ()
    stimulate: tuple[Pair, ...] = ()
    # Another checkpoint than the base (a variant folder), or the tuned server: which engine or endpoint answers.
    checkpoint: str | None = None
    # What that folder holds; its path says nothing, since another variant may be written there.
    content_sha256: str | None = None
    # What is chosen of a served variant with a dial.
    choice: str | None = None
    # Distinguishes the second run of the same model; other seeds, same everything else.
    repeat: int = 0
    # Of suppressed experts that a reroute leaves selectable.
    bias_shifts: tuple[Shift, ...] = ()
    # Of suppressed experts that keep a part of their output, and of stimulated ones with a gain.
    factors: tuple[Factor, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What makes this arm's answers what they are; the name and the order of the experts do not."""
        return {
            "checkpoint": self.content_sha256 or self.checkpoint,
            "semantics": self.semantics if self.suppress or self.stimulate else None,
            "suppress": sorted(self.suppress),
            "stimulate": sorted(self.stimulate),
            "repeat": self.repeat,
            **({"bias_shifts": sorted(self.bias_shifts)} if self.bias_shifts else {}),
            **({"factors": sorted(self.factors)} if self.factors else {}),
            **({"choice": self.choice} if self.choice is not None else {}),
        }


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; None leaves a value to the model's own defaults."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    # The answer ends as soon as its label is decided (ftri.labels.deciding): enough where labels are all that is compared.
    until_decided: bool = False

    def with_seed_for(self, repeat: int, prompt_id: str, sample: int) -> Sampling:
        """The same with a seed of this one answer, alike in every arm of the same `repeat`, so that arms differ
        by their edit alone."""
        seed = int(digest([self.seed, repeat, prompt_id, sample])[:8], 16) % 2**31
        return replace(self, seed=seed)


@dataclass(frozen=True)
class Request:
    """One question to one arm: the messages of the conversation so far, and how to sample the answer."""

    prompt_id: str
    sample: int
    messages: tuple[tuple[str, str], ...]
    sampling: Sampling

    def identity(self) -> dict[str, Any]:
        """What decides the answer."""
        sampling = self.sampling
        # A greedy answer does not depend on the seed; without it, a seed change keeps greedy answers.
        seed = sampling.seed if sampling.temperature > 0 else None
        return {
            "messages": self.messages,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature > 0 else None,
            "seed": seed,
            "sample": self.sample,
            **({"until": "decided"} if sampling.until_decided else {}),
        }


@dataclass(frozen=True)
class Answer:
    """What came back: raw text without any reasoning parser, and the tokens where they are known."""

    prompt_id: str
    sample: int
    text: str
    finish_reason: str
    starts_inside_think: bool = False
    prompt_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


Keep = Callable[[int, Answer], None]


class Responder(Protocol):
    """Whatever answers requests: an engine on this machine, or servers."""

    ready_at: float  # time.monotonic() when it last became ready to answer

    def identity(self) -> dict[str, Any]:
        """What, besides arm and request, decides an answer (model, revision, template, edits' values)."""
        ...

    def answer(self, arms: Sequence[Arm], requests: Sequence[Request], keep: Keep) -> None:
        """Have the n-th arm answer the n-th request; calls `keep(position, answer)` as soon as one is finished, in any order."""
        ...


def identity_of(think_format: ThinkFormat | None) -> dict[str, str]:
    """What a known thinking format adds to a responder's identity: it decides where an answer that ends once its label
    is decided ends, whether one begins inside the block, and every label."""
    return {"think_format": think_format.name} if think_format else {}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def answer_key(responder: dict[str, Any], arm: Arm, request: Request) -> str:
    """The name under which the journal keeps the answer of `arm` to `request`."""
    return digest(["answer", responder, arm.identity(), request.identity()])[:32]
