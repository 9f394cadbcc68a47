"""What an edit is worked out to: finite bias shifts as the checkpoint gets them, and what has no place for one."""

from pathlib import Path

import numpy as np
import pytest

from ftri.worker.planning import RouterEdit, as_expert_set, plan_edit
from ftri.worker.request import RequestEdit
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.edit.tensors import decode_bias
from rewriter.errors import InputError, PlanError
from rewriter.families.family import RouterLayout

MINIATURES = Path(__file__).parents[3] / "examples"
SHIFTS = [(2, 46, -0.07), (3, 44, -0.3)]
PAIRS = [(2, 46), (3, 44), (4, 84)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(MINIATURES / "tiny-r1")


def bias_of(checkpoint: Checkpoint, layer: int) -> np.ndarray:
    entry = checkpoint.find(checkpoint.layout.bias_names(layer))
    assert entry is not None
    return decode_bias(checkpoint.read(entry), entry.dtype)


def test_a_live_shift_is_the_bias_that_the_checkpoint_gets_to_the_bit(checkpoint: Checkpoint) -> None:
    planned = plan_edit(RouterEdit("reroute", PAIRS, bias_shifts=SHIFTS), checkpoint, checkpoint.layout)
    assert planned is not None
    live = {(layer, expert): value for layer, expert, value in planned.request.bias}
    assert live[4, 84] == float("-inf") and len(live) == 3
    written = make_plan(checkpoint, as_expert_set(PAIRS, SHIFTS), None, EditOptions()).patches
    for patch, (layer, expert) in zip(written, PAIRS, strict=True):
        assert patch.data is not None
        assert live[layer, expert] == float(decode_bias(patch.data, "F32")[expert])
    for layer, expert, shift in SHIFTS:
        assert live[layer, expert] == float(np.float32(float(bias_of(checkpoint, layer)[expert]) + shift))


def test_a_strength_takes_a_part_of_the_shift(checkpoint: Checkpoint) -> None:
    edit = RouterEdit("reroute", [(2, 46)], bias_shifts=SHIFTS[:1], strength=0.5)
    planned = plan_edit(edit, checkpoint, checkpoint.layout)
    assert planned is not None
    assert planned.request.bias == [(2, 46, pytest.approx(float(bias_of(checkpoint, 2)[46]) - 0.035))]
    assert (
        plan_edit(RouterEdit("reroute", [(2, 46)], bias_shifts=SHIFTS[:1], strength=0), checkpoint, checkpoint.layout)
        is None
    )


def test_edits_of_other_shifts_share_no_cache(checkpoint: Checkpoint) -> None:
    edits = [RouterEdit("reroute", [(2, 46)], bias_shifts=[(2, 46, shift)]) for shift in (-0.07, -0.08)]
    edits.append(RouterEdit("reroute", [(2, 46)]))
    planned = [plan_edit(edit, checkpoint, checkpoint.layout) for edit in edits]
    assert len({one.key for one in planned if one is not None}) == 3


@pytest.mark.parametrize("shift", [0.0, 0.1, float("nan"), float("-inf")])
def test_other_numbers_are_refused(checkpoint: Checkpoint, shift: float) -> None:
    with pytest.raises(InputError, match="layer 2 expert 46 has a bias shift of .*, expected a finite number below 0"):
        plan_edit(RouterEdit("reroute", [(2, 46)], bias_shifts=[(2, 46, shift)]), checkpoint, checkpoint.layout)


def test_what_takes_no_shift_says_so(checkpoint: Checkpoint) -> None:
    layout: RouterLayout = checkpoint.layout
    with pytest.raises(InputError, match="expected it among the suppressed"):
        plan_edit(RouterEdit("reroute", [(2, 46)], bias_shifts=[(2, 47, -0.1)]), checkpoint, layout)
    for semantics in ("drop", "drop-renorm"):
        with pytest.raises(InputError, match=f"expected none with semantics {semantics}"):
            plan_edit(RouterEdit(semantics, [(2, 46)], bias_shifts=SHIFTS[:1]), checkpoint, layout)  # type: ignore[arg-type]
    bias_free = Checkpoint.open(MINIATURES / "tiny-qwen3")
    layer = bias_free.layout.moe_layers[0]
    with pytest.raises(PlanError, match="family qwen_moe has no router bias"):
        plan_edit(RouterEdit("reroute", [(layer, 1)], bias_shifts=[(layer, 1, -0.1)]), bias_free, bias_free.layout)


def request_of(checkpoint: Checkpoint, semantics: str, **numbers: object) -> RequestEdit:
    """What a request carries of an edit that suppresses layer 2 expert 46 and 58 and stimulates layer 3 expert 44."""
    edit = RouterEdit(semantics, [(2, 46), (2, 58)], [(3, 44)], **numbers)  # type: ignore[arg-type]
    planned = plan_edit(edit, checkpoint, checkpoint.layout)
    assert planned is not None
    return planned.request


def test_an_output_keeps_a_part_and_a_stimulated_one_its_gain(checkpoint: Checkpoint) -> None:
    """As the checkpoint holds it: the weight times the factor, beside the bias that selects the stimulated expert."""
    kept, gain = (2, 46, 0.25), (3, 44, 2.5)
    drop = request_of(checkpoint, "drop", factors=[gain, kept])
    assert drop.factor == [kept, (2, 58, 0.0), gain] and not drop.renormalize
    assert [entry[:2] for entry in drop.bias] == [(3, 44)]
    reroute = request_of(checkpoint, "reroute", factors=[gain])
    assert reroute.factor == [gain] and [entry[:2] for entry in reroute.bias] == [(2, 46), (2, 58), (3, 44)]
    own = request_of(checkpoint, "drop-renorm", factors=[kept])
    assert own.factor == [kept, (2, 58, 0.0)] and own.renormalize and own.stimulate == [(3, 44)]
    assert request_of(checkpoint, "reroute").factor == [], "a reroute without a gain weighs nothing anew"


def test_a_strength_takes_a_part_of_the_way_to_a_factor(checkpoint: Checkpoint) -> None:
    half = request_of(checkpoint, "drop", factors=[(2, 46, 0.2), (3, 44, 3.0)], strength=0.5)
    assert half.factor == [(2, 46, 0.6), (2, 58, 0.5), (3, 44, 2.0)]


@pytest.mark.parametrize(
    ("semantics", "factor", "sentence"),
    [
        ("drop", (2, 46, 0.0), "layer 2 expert 46 has a factor of 0, expected a finite number above 0"),
        ("drop", (2, 46, float("nan")), "has a factor of nan, expected a finite number above 0"),
        ("drop", (2, 46, 1.5), "is suppressed under drop, expected a factor below 1 under drop or drop-renorm"),
        ("reroute", (2, 46, 0.5), "is suppressed under reroute, expected a factor below 1 under drop or drop-renorm"),
        ("drop", (2, 47, 0.5), "is not among the edit's experts, expected one of them"),
        ("drop-renorm", (3, 44, 2.0), "is stimulated under drop-renorm, which gives it the largest weight"),
    ],
)
def test_factors_that_mean_nothing_are_refused(
    checkpoint: Checkpoint, semantics: str, factor: tuple[int, int, float], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        request_of(checkpoint, semantics, factors=[factor])
