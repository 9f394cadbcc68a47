"""Feasibility and margins against a slow, obvious router: whatever the scores are, an accepted edit decides the selection.

Legend: E routed experts, G expert groups, K selected experts.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from checkpoints import NUMPY_DTYPES, one_router
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.errors import PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet

MINUS_INFINITY = float("-inf")


@dataclass(frozen=True)
class Router:
    """A group-limited router (runtimes.md, "Selection, in DeepSeek-V3 style routers")."""

    num_groups: int
    groups_kept: int
    top_k: int

    def select(self, scores: Any, bias: Any, dead: set[int], wanted: Collection[int] = ()) -> list[int]:
        """The experts chosen for one token; ties go against `wanted` and for `dead`, as a kernel may break them either way.

        scores, bias: [E] float64.
        """
        choice = scores + bias
        num_experts = len(choice)
        size = num_experts // self.num_groups
        groups = [list(range(group * size, (group + 1) * size)) for group in range(self.num_groups)]
        if self.num_groups > 1:
            score = {g: sum(sorted(choice[group])[-2:]) for g, group in enumerate(groups)}
            order = sorted(
                score, key=lambda g: (-score[g], len(set(wanted) & set(groups[g])), -len(dead & set(groups[g])))
            )
            candidates = [expert for g in order[: self.groups_kept] for expert in groups[g]]
        else:
            candidates = groups[0]
        ranked = sorted(candidates, key=lambda expert: (-choice[expert], expert not in dead))
        return ranked[: self.top_k]

    def config(self) -> dict[str, int]:
        """As config.json says it."""
        return {"n_group": self.num_groups, "topk_group": self.groups_kept, "num_experts_per_tok": self.top_k}


@dataclass(frozen=True)
class Case:
    """A router, its bias and an edit."""

    router: Router
    bias: list[float]
    dtype: str
    suppressed: frozenset[int]
    stimulated: frozenset[int]
    suppress_bias: str | float = "auto"
    shuffled_scores: tuple[tuple[float, ...], ...] = field(default=())

    def edited(self) -> Any:
        """The edited bias [E] float64, by a whole plan.

        Raises: PlanError when it is refused.
        """
        checkpoint = Checkpoint(one_router(self.bias, self.dtype, **self.router.config()))
        plan = make_plan(
            checkpoint,
            expert_set(self.suppressed),
            expert_set(self.stimulated),
            EditOptions(suppress_bias=self.suppress_bias),
        )
        (patch,) = plan.patches
        assert patch.data is not None
        return np.frombuffer(patch.data, NUMPY_DTYPES[self.dtype]).astype(np.float64)

    def dead(self) -> set[int]:
        """Experts that must never be selected: the suppressed ones and those the base has at -inf, unless stimulated."""
        return (set(self.suppressed) | {e for e, value in enumerate(self.bias) if value == MINUS_INFINITY}) - set(
            self.stimulated
        )

    def num_groups_with_two_live(self) -> int:
        """How many groups have a finite score whatever the suppressed experts' bias is."""
        size = len(self.bias) // self.router.num_groups
        live = [expert // size for expert in range(len(self.bias)) if expert not in self.dead()]
        return sum(live.count(group) >= 2 for group in range(self.router.num_groups))

    def fault(self, edited: Any) -> str | None:
        """What goes wrong with the selection under the most adverse scores in [0, 1], or None."""
        for scores in self.adverse_scores():
            selected = self.router.select(np.asarray(scores), edited, self.dead(), self.stimulated)
            if len(set(selected)) < self.router.top_k:
                return f"only {len(set(selected))} experts selected"
            if self.dead() & set(selected):
                return f"suppressed selected: {sorted(self.dead() & set(selected))}"
            if set(self.stimulated) - set(selected):
                return f"stimulated not selected: {sorted(set(self.stimulated) - set(selected))}"
        return None

    def adverse_scores(self) -> list[Any]:
        """Scores [E] that favour the suppressed and disfavour the stimulated, with every choice of favoured groups."""
        num_experts, size = len(self.bias), len(self.bias) // self.router.num_groups
        made: list[Any] = list(self.shuffled_scores)
        for count in range(self.router.num_groups + 1):
            for favoured in combinations(range(self.router.num_groups), count):
                for dead_score in (0.0, 1.0):
                    scores = np.array([float(expert // size in favoured) for expert in range(num_experts)])
                    scores[list(self.dead())] = dead_score
                    scores[list(self.stimulated)] = 0.0
                    made.append(scores)
        return made


def expert_set(experts: frozenset[int]) -> ExpertSet | None:
    """An expert set of layer 1, or None for no experts."""
    entries = [ExpertEntry(layer=1, expert=expert) for expert in sorted(experts)]
    return ExpertSet(layer_index="model", behavior="test", experts=entries) if entries else None


@st.composite
def routers(draw: st.DrawFn) -> tuple[Router, int]:
    """A router and its number of experts."""
    num_groups = draw(st.sampled_from([1, 2, 3, 4]))
    size = draw(st.integers(2, 4)) if num_groups > 1 else draw(st.integers(3, 9))
    kept = draw(st.integers(1, num_groups))
    top_k = draw(st.integers(1, kept * size))
    return Router(num_groups, kept, top_k), num_groups * size


@st.composite
def cases(draw: st.DrawFn, *, even_bias: bool = False) -> Case:
    """A case; even_bias: all experts start equal, so that scores alone decide who is at a disadvantage."""
    router, num_experts = draw(routers())
    dtype = draw(st.sampled_from(["F32", "BF16", "F16"]))
    value = st.floats(-100, 100, width=16) | st.sampled_from([0.0, 4.0, MINUS_INFINITY])
    bias = [0.0] * num_experts if even_bias else draw(st.lists(value, min_size=num_experts, max_size=num_experts))
    actions = draw(
        st.lists(st.sampled_from(["", "", "suppress", "stimulate"]), min_size=num_experts, max_size=num_experts)
    )
    suppressed = frozenset(expert for expert, action in enumerate(actions) if action == "suppress")
    stimulated = frozenset(expert for expert, action in enumerate(actions) if action == "stimulate")
    assume(suppressed or stimulated)
    choices = st.sampled_from(["auto", "-inf", "margin"])
    if not even_bias:
        choices |= st.sampled_from([-30.0, -1000.0, -60000.0])
    scores = st.tuples(*[st.floats(0, 1)] * num_experts)
    return Case(
        router,
        [float(np.asarray(number, NUMPY_DTYPES[dtype])) for number in bias],
        dtype,
        suppressed,
        stimulated,
        draw(choices),
        tuple(draw(st.lists(scores, max_size=3))),
    )


@settings(max_examples=300, deadline=None)
@given(cases())
def test_accepted_edit_decides_the_selection(case: Case) -> None:
    """Suppressed experts are never selected, stimulated ones always, and K distinct ones are, whatever the scores."""
    try:
        edited = case.edited()
    except PlanError:
        event("refused")
        return
    event("accepted")
    fault = case.fault(edited)
    assert fault is None, fault
    untouched = [e for e in range(len(case.bias)) if e not in case.suppressed | case.stimulated]
    assert edited[untouched].tolist() == [case.bias[expert] for expert in untouched]


@settings(max_examples=300, deadline=None)
@given(cases(even_bias=True))
def test_refused_edit_would_break(case: Case) -> None:
    """A refusal is not idle: some scores make the router fail, or it is one of two known cautions.

    Where experts start equal, they are: fewer than `groups_kept` groups have two live experts, where kernels have to keep
    groups whose score is -inf, which some do not survive although this router does; and no untouched expert is left to
    measure a margin from.
    """
    try:
        case.edited()
    except PlanError as error:
        message = str(error)
    else:
        event("accepted")
        return
    if "no untouched expert is left" in message or case.num_groups_with_two_live() < case.router.groups_kept:
        event("known caution")
        return
    event("refused")
    suppress, stimulate = (MINUS_INFINITY if case.suppress_bias != "margin" else -4.0), 7.0
    edited = np.array(case.bias)
    edited[list(case.suppressed)], edited[list(case.stimulated)] = suppress, stimulate
    assert case.fault(edited) is not None, message


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_lone_stimulated_expert_of_a_suppressed_group(dtype: str) -> None:
    """The margins are made so that its group is still kept; -inf or a much lower number would lose it."""
    router = Router(num_groups=4, groups_kept=2, top_k=4)
    bias = [4.0 + 0.25 * (expert % 5) for expert in range(16)]
    case = Case(router, bias, dtype, frozenset({1, 2, 3}), frozenset({0}), "margin")
    assert case.fault(case.edited()) is None
    for value in ("auto", "-inf", -1000.0):
        with pytest.raises(PlanError, match="group 0 holds a stimulated expert and no other live one"):
            Case(router, bias, dtype, frozenset({1, 2, 3}), frozenset({0}), value).edited()


R1 = {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 8}


@pytest.mark.parametrize(
    ("suppressed", "stimulated", "config", "expected"),
    [
        (range(0), range(9), R1, "9 experts are stimulated, but the router selects 8 (top-k)"),
        (range(0), range(0, 160, 32), R1, "in 5 groups [0, 1, 2, 3, 4], but the router keeps 4 groups"),
        (range(159), range(0), R1, "3 groups keep at least 2 live experts, but the router keeps 4 of 8 groups"),
        (
            [e for e in range(256) if e % 32 >= 2 or e >= 128],
            range(0),
            R1 | {"num_experts_per_tok": 9},
            "could have only 8 live experts together, but it selects 9 (top-k)",
        ),
        (range(249), range(0), R1 | {"n_group": 1, "topk_group": 1}, "which leaves 7, but the router selects 8"),
    ],
)
def test_refusals_say_the_layer_and_the_numbers(
    suppressed: Any, stimulated: Any, config: dict[str, int], expected: str
) -> None:
    checkpoint = Checkpoint(one_router([4.0] * 256, "F32", **config))
    with pytest.raises(PlanError, match=r"^layer 1: ") as caught:
        make_plan(checkpoint, expert_set(frozenset(suppressed)), expert_set(frozenset(stimulated)), EditOptions())
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("suppressed", "stimulated"), [(range(120), range(248, 256)), (range(0, 256, 3), range(1, 9, 3))]
)
def test_r1_s_own_router_bears_large_edits(suppressed: Any, stimulated: Any) -> None:
    rng = np.random.default_rng(0)
    bias = (4 + 5 * rng.random(256)).tolist()
    case = Case(Router(8, 4, 8), bias, "F32", frozenset(suppressed), frozenset(stimulated))
    edited = case.edited()
    for _ in range(50):
        scores = rng.random(256)
        selected = set(case.router.select(scores, edited, case.dead()))
        assert not selected & case.dead() and case.stimulated <= selected and len(selected) == 8


def test_stimulated_expert_that_the_base_has_at_minus_infinity() -> None:
    """It is revived, and counts as live again."""
    bias = [4.0] * 16
    bias[3] = MINUS_INFINITY
    case = Case(Router(4, 2, 4), bias, "F32", frozenset({8}), frozenset({3}))
    assert case.fault(case.edited()) is None


def test_experts_the_base_has_at_minus_infinity_count_as_dead() -> None:
    bias = [4.0] * 16
    for expert in (0, 1, 2, 4, 5, 6, 8, 9, 10):
        bias[expert] = MINUS_INFINITY
    with pytest.raises(PlanError, match="1 groups keep at least 2 live experts"):
        Case(Router(4, 2, 4), bias, "F32", frozenset({15}), frozenset()).edited()


def edited_again(suppressed: Collection[int], again: list[ExpertEntry], stimulated: Collection[int] = ()) -> np.ndarray:
    """The bias [E] of a variant whose base is one that a finite margin keeps `suppressed` out of; 16 experts, top-4."""
    ungrouped = {"n_group": 1, "topk_group": 1}
    base = Checkpoint(one_router([4.0 + 0.01 * e for e in range(16)], "F32", **ungrouped))
    options = EditOptions(suppress_bias="margin")
    first = make_plan(base, expert_set(frozenset(suppressed)), expert_set(frozenset(stimulated)), options)
    bias = np.frombuffer(first.patches[0].data or b"", "<f4")
    variant = Checkpoint(one_router(bias.tolist(), "F32", mote=first.config["mote"], **ungrouped))
    chosen = ExpertSet(layer_index="model", behavior="again", experts=again)
    return np.frombuffer(make_plan(variant, chosen, None, options).patches[0].data or b"", "<f4")


def test_experts_that_the_base_keeps_out_by_a_margin_count_as_dead() -> None:
    with pytest.raises(PlanError, match="13 of 16 experts are suppressed, which leaves 3, but the router selects 4"):
        edited_again(range(10), [ExpertEntry(layer=1, expert=expert) for expert in range(10, 13)])
    edited = edited_again(range(10), [ExpertEntry(layer=1, expert=expert) for expert in (10, 11)])
    assert max(edited[:12]) + 1 < min(edited[12:])


def test_experts_that_the_base_keeps_out_stay_out_whatever_is_shifted() -> None:
    lowered = [ExpertEntry(layer=1, expert=expert, bias_shift=-1000.0) for expert in range(10, 16)]
    with pytest.raises(PlanError, match=r"layer 1: the base keeps expert 0 out by a bias of .*, but beside the biases"):
        edited_again(range(10), lowered)
    # A little lower, or beside an expert that the base stimulates, they are out of reach all the same.
    assert edited_again(range(5), [ExpertEntry(layer=1, expert=9, bias_shift=-0.01)], (15,)).size == 16
