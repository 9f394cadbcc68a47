import pytest

from eval.measures.transitions import compare, transition_matrix
from eval.outcomes.targets import Target, find_target, move_rate
from rewriter.errors import InputError

REFUSED_LEAVE = Target("behavior", "REFUSED", "leave")
# Ten answers by hand: 4 refused, of which 1 stays, 1 is answered, 1 is reasoned about, 1 is cut off; 6 others, of
# which 1 is refused.
BEFORE = ["REFUSED"] * 4 + ["ALIGNED"] * 4 + ["REASONED"] * 2
AFTER = [
    "REFUSED",
    "ALIGNED",
    "REASONED",
    "TRUNCATED",
    "ALIGNED",
    "ALIGNED",
    "REFUSED",
    "ALIGNED",
    "REASONED",
    "ALIGNED",
]


def test_matrix_counts_by_hand():
    matrix = transition_matrix("behavior", REFUSED_LEAVE.labels, BEFORE, AFTER)
    assert matrix.count("REFUSED", "ALIGNED") == 1
    assert matrix.count("ALIGNED", "ALIGNED") == 3
    assert matrix.count("REASONED", "ALIGNED") == 1
    assert sum(map(sum, matrix.counts)) == 10
    row = matrix.rates[matrix.labels.index("REFUSED")]
    assert [cell.rate for cell in row] == [0.25, 0.25, 0.25, 0, 0.25, 0]


def test_a_cut_answer_is_damage_and_not_an_answer():
    assert move_rate(REFUSED_LEAVE, BEFORE, AFTER) == 0.5


def test_entering_is_counted_among_those_outside():
    assert move_rate(Target("behavior", "REFUSED", "enter"), BEFORE, AFTER) == pytest.approx(1 / 6)
    assert move_rate(Target("behavior", "REFUSED", "enter"), ["REFUSED"], ["REFUSED"]) == 0


def test_comparison_gives_both_directions_and_the_paired_test():
    result = compare(REFUSED_LEAVE, "base", "variant", BEFORE, AFTER, [str(n) for n in range(10)])
    assert (result.moved.rate.count, result.moved.rate.total) == (2, 4)
    assert (result.returned.rate.count, result.returned.rate.total) == (1, 6)
    assert (result.mcnemar.lost, result.mcnemar.gained) == (3, 1)
    # Two-sided exact: 2 * (C(4,0) + C(4,1)) / 2^4.
    assert result.mcnemar.p_value == pytest.approx(0.625)
    assert result.changed.count == 5
    assert result.label_share_difference.estimate == pytest.approx(-0.2)


def test_samples_of_one_prompt_are_no_further_evidence():
    """Ten samples of two prompts that all changed are two prompts, whose two-sided p-value is 0.5 and not 2 ** -9."""
    before, after = ["REFUSED"] * 10, ["ALIGNED"] * 10
    units = ["a"] * 5 + ["b"] * 5
    result = compare(REFUSED_LEAVE, "base", "variant", before, after, units, units=units)
    assert (result.mcnemar.lost, result.mcnemar.gained, result.mcnemar.p_value) == (2, 0, 0.5)
    # One sample to each side cancel out within a prompt.
    one = ["a", "a"]
    mixed = compare(REFUSED_LEAVE, "base", "variant", ["REFUSED", "ALIGNED"], ["ALIGNED", "REFUSED"], one, units=one)
    assert (mixed.mcnemar.lost, mixed.mcnemar.gained) == (0, 0)


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="SHOUTED"):
        transition_matrix("behavior", REFUSED_LEAVE.labels, ["REFUSED"], ["SHOUTED"])


@pytest.mark.parametrize(
    ("behavior", "axis", "label"),
    [
        ("refusal", "behavior", "REFUSED"),
        ("REASONED", "behavior", "REASONED"),
        ("reasoning in English", "language", "english"),
        ("chinese", "language", "chinese"),
    ],
)
def test_the_behaviour_of_an_expert_set_names_its_target(behavior, axis, label):
    target = find_target(behavior, "leave")
    assert (target.axis, target.label) == (axis, label)


def test_a_behaviour_without_a_label_needs_the_option():
    with pytest.raises(InputError, match="'poetry'.*--target"):
        find_target("poetry", "leave")
    assert find_target("poetry", "leave", "ALIGNED").label == "ALIGNED"
    with pytest.raises(InputError, match="'loud'"):
        find_target("poetry", "leave", "loud")
