"""The variants of several evaluations with their figures, schema `mote.compare/1`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import rewriter
from eval.answers.arms import BASE
from eval.compare.comparable import Evaluation, base_name, check_comparable
from eval.measures.fidelity import name_under
from eval.measures.safety import SafetySet, cut_sentences
from eval.measures.transitions import Change, Comparison
from eval.outcomes.observed import ArmSummary
from eval.outcomes.statistics import Interval, Rate
from eval.results import Results
from rewriter.semantics import STIMULATE, SUPPRESS

SCHEMA_ID: Literal["mote.compare/1"] = "mote.compare/1"


class Transition(BaseModel):
    """The share of the base's answers with one label that have another one under a variant."""

    before: str
    after: str
    rate: Rate


class Chance(BaseModel):
    """How random expert sets of the same size did; `p_value` says how often they moved as much."""

    matching: str
    num_sets: int
    mean: float
    p_value: float


class Variant(BaseModel):
    """One variant: what it is, what it moves, what it costs."""

    number: int
    name: str
    edit: str
    semantics: str | None
    num_experts: int
    moved: Change
    returned: Change
    changed: Rate
    label_share: Rate
    transitions: list[Transition]
    kl: Interval | None = Field(description="KL(base || variant) in nats per answer token of neutral text.")
    kl_is_exact: bool
    looping: Rate
    garbled: Rate
    chance: list[Chance]
    safety: list[SafetySet]
    mt_bench_change: float | None
    held_out: str
    on_front: bool = False


class Comparisons(BaseModel):
    """Everything on the page."""

    model_config = ConfigDict(populate_by_name=True)

    schema_id: Literal["mote.compare/1"] = Field(SCHEMA_ID, alias="schema")
    tool_version: str
    base: str
    behavior: str
    target: dict[str, str]
    prompts: dict[str, Any]
    base_label_share: Rate
    repeat_flips: Rate | None
    sources: dict[str, str] = Field(description="Name of each evaluation -> when it was made.")
    variants: list[Variant]
    notes: list[str]


def compare_evaluations(evaluations: Sequence[Evaluation]) -> Comparisons:
    """Put the variants of all evaluations beside each other, numbered in their order, the front of moved against KL marked.

    Raises: InputError for evaluations that cannot be compared.
    """
    check_comparable(evaluations)
    first = evaluations[0].results
    variants: list[Variant] = []
    for one in evaluations:
        variants += variants_of(one, len(variants) + 1, is_alone=len(evaluations) == 1)
    for variant in front(variants):
        variant.on_front = True
    axis, label = first.target["axis"], first.target["label"]
    return Comparisons(
        schema=SCHEMA_ID,
        tool_version=rewriter.__version__,
        base=base_name(first),
        behavior=first.behavior,
        target=first.target,
        prompts=first.prompts,
        base_label_share=first.arm("base").labels_of(label, axis),
        repeat_flips=first.repeat_flips,
        sources={one.name: one.results.created for one in evaluations},
        variants=variants,
        notes=notes_on(evaluations, variants),
    )


def variants_of(evaluation: Evaluation, first_number: int, *, is_alone: bool) -> list[Variant]:
    """The variants of one evaluation; their names begin with the evaluation's, unless it is the only one."""
    results, found = evaluation.results, []
    for number, comparison in enumerate(results.comparisons, start=first_number):
        arm = results.arm(comparison.after)
        is_main = comparison.after == results.primary
        own = comparison.after if is_alone else evaluation.name
        if not is_alone and len(results.comparisons) > 1:
            own = f"{evaluation.name}: {comparison.after}"
        kl, is_exact = divergence_of(results, arm)
        found.append(
            Variant(
                number=number,
                name=own,
                edit=results.edit_words(arm.name),
                semantics=arm.semantics,
                num_experts=len(arm.suppress) + len(arm.stimulate),
                moved=comparison.moved,
                returned=comparison.returned,
                changed=comparison.changed,
                label_share=comparison.label_share_after,
                transitions=transitions_of(comparison),
                kl=kl,
                kl_is_exact=is_exact,
                looping=arm.looping,
                garbled=arm.garbled,
                chance=[
                    Chance(matching=one.matching, num_sets=len(one.null_values), mean=one.mean, p_value=one.p_value)
                    for one in (results.controls if is_main else [])
                ],
                safety=[one for one in results.safety if one.arm == comparison.after],
                mt_bench_change=results.mt_bench.overall.difference.estimate if is_main and results.mt_bench else None,
                held_out=results.held_out.status,
            )
        )
    return found


def transitions_of(comparison: Comparison) -> list[Transition]:
    """Every change from one label to another that had answers to make it, those with a count of 0 included."""
    matrix = comparison.matrix
    return [
        Transition(before=before, after=after, rate=matrix.rates[row][column])
        for row, before in enumerate(matrix.labels)
        for column, after in enumerate(matrix.labels)
        if row != column and matrix.rates[row][column].total
    ]


def divergence_of(results: Results, arm: ArmSummary) -> tuple[Interval | None, bool]:
    """KL of an arm from the base, where it was measured for all that the arm edits, and whether over the whole vocabulary."""
    is_exact = results.fidelity[0].exact if results.fidelity else results.options.get("kl_listed") == -1
    for other in results.divergences:
        if other.arm == arm.name:
            return other.answer_tokens, is_exact
    if arm.kind != results.arm(results.primary).kind:
        return None, False
    edited = [action for action, pairs in ((SUPPRESS, arm.suppress), (STIMULATE, arm.stimulate)) if pairs]
    for fidelity in results.fidelity:
        for one in fidelity.divergences:
            # Suppression and stimulation are measured each by itself, which is not what an edit of both does.
            if edited == [fidelity.action] and (one.left, one.right) == (BASE, name_under(arm, fidelity.action)):
                return one.answer_tokens, fidelity.exact
    return None, False


def front(variants: Sequence[Variant]) -> list[Variant]:
    """Those that no other beats by moving as many at a smaller KL, or more at the same one; by rising KL."""

    def costs(one: Variant) -> tuple[float, float] | None:
        if one.kl is None or one.kl.estimate is None or one.moved.rate.rate is None:
            return None
        return one.kl.estimate, -one.moved.rate.rate

    measured = sorted(((cost, one) for one in variants if (cost := costs(one)) is not None), key=lambda pair: pair[0])
    kept: list[Variant] = []
    best = (float("inf"), float("inf"))
    for cost, one in measured:
        if cost[1] < best[1] or cost == best:
            best = cost
            kept.append(one)
    return kept


def notes_on(evaluations: Sequence[Evaluation], variants: Sequence[Variant]) -> list[str]:
    """What to keep in mind when reading the figures beside each other."""
    notes = []
    first = evaluations[0]
    axis, label = first.results.target["axis"], first.results.target["label"]
    shares = {one.name: one.results.arm("base").labels_of(label, axis).count for one in evaluations}
    if len(set(shares.values())) > 1:
        counts = ", ".join(f"{count} in {name}" for name, count in shares.items())
        notes.append(
            f"The base itself did not answer alike in all evaluations ({label}: {counts}); differences between variants of that"
            " size mean nothing."
        )
    for status, words in (
        ("overlap", "The experts were found on some of these very prompts, which flatters"),
        ("unknown", "Whether the experts were found on these very prompts, which would flatter, is not known"),
    ):
        names = [one.name for one in evaluations if one.results.held_out.status == status]
        if names:
            notes.append(f"{words}: {', '.join(names)}.")
    unmeasured = [str(one.number) for one in variants if one.kl is None or one.kl.estimate is None]
    if unmeasured:
        notes.append(
            f"No KL was measured for {', '.join(unmeasured)}, which the picture of moved against KL leaves out."
        )
    for one in evaluations:
        notes += [f"{one.name}, {sentence}" for sentence in cut_sentences(one.results.safety)]
        if one.results.missing:
            parts = ", ".join(missing.part for missing in one.results.missing)
            notes.append(f"Not measured in {one.name}: {parts}.")
    return notes
