"""Deciding tokens are learned from responses, and chances from them equal a slow walk over the tree."""

import math

import pytest

from eval.refine.deciding import chance, deciding_tokens, grow_tree, log_odds, probe_for

THINK, EMPTY, HM, CLOSE, SORRY, IN, END = range(7)
REFUSED = [THINK, EMPTY, CLOSE, SORRY, END]
ALIGNED = [THINK, EMPTY, CLOSE, IN, END]
REASONED = [THINK, HM, CLOSE, IN, END]
RESPONSES = [REFUSED, REFUSED, ALIGNED, REASONED]
IS_TARGET = [True, True, False, False]
PROMPT = [90, 91, 92]


def test_two_places_decide() -> None:
    root = grow_tree(RESPONSES, IS_TARGET)
    assert deciding_tokens(root) == [
        ((THINK,), {EMPTY: 2 / 3, HM: 0.0}),
        ((THINK, EMPTY, CLOSE), {SORRY: 1.0, IN: 0.0}),
    ]


def test_probe_ends_where_the_response_is_settled() -> None:
    root = grow_tree(RESPONSES, IS_TARGET)
    refused = probe_for(root, "a", PROMPT, REFUSED)
    assert refused is not None
    assert refused.token_ids == (*PROMPT, THINK, EMPTY, CLOSE, SORRY)
    # Position n predicts token n + 1: after THINK (position 3) and after CLOSE (position 5).
    assert refused.positions == (3, 5)
    assert refused.own == (EMPTY,)
    reasoned = probe_for(root, "b", PROMPT, REASONED)
    assert reasoned is not None
    assert reasoned.token_ids == (*PROMPT, THINK, HM)
    assert reasoned.positions == (3,)


def test_chance_follows_the_tree() -> None:
    root = grow_tree(RESPONSES, IS_TARGET)
    probe = probe_for(root, "a", PROMPT, REFUSED)
    assert probe is not None
    found = chance(probe, [{EMPTY: 0.6, HM: 0.3, 55: 0.1}, {SORRY: 0.2, IN: 0.6}])
    assert found == pytest.approx((0.6 * (0.2 / 0.8) + 0.3 * 0.0) / 0.9)


def test_unknown_tokens_leave_the_recorded_share() -> None:
    root = grow_tree(RESPONSES, IS_TARGET)
    probe = probe_for(root, "b", PROMPT, REASONED)
    assert probe is not None
    assert chance(probe, [{55: 1.0}]) == pytest.approx((2 / 3 + 0.0) / 2)


def test_one_stray_label_decides_nothing() -> None:
    root = grow_tree([REFUSED] * 99 + [REFUSED], [True] * 99 + [False])
    assert deciding_tokens(root) == []
    assert probe_for(root, "a", PROMPT, REFUSED) is None


def test_log_odds_are_bounded() -> None:
    assert log_odds(0.5) == 0.0
    assert log_odds(1.0) == pytest.approx(math.log(1e6), abs=1e-3)
    assert log_odds(0.0) == pytest.approx(-math.log(1e6), abs=1e-3)


def test_labels_and_responses_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        grow_tree(RESPONSES, IS_TARGET[:-1])
