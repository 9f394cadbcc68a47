"""Against scipy and slow loops."""

import numpy as np
import pytest
from scipy.stats import entropy

from eval.answers.engine import batches
from eval.answers.live import TokenDistributions
from eval.measures.controls import selection_frequency
from eval.measures.fidelity import MEASURE, Fidelity, flips_from_paper, from_paper
from eval.measures.kl import Divergence, compare, kl_per_position, likeliest, pooled_kl
from eval.measures.touched import changed_slots, touched_shares
from eval.outcomes.statistics import Interval

LAYERS = [3, 5, 8]


def random_logs(seed, positions=6, vocabulary=50):
    logits = np.random.default_rng(seed).normal(size=(positions, vocabulary)) * 2
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def listed(logs, count=None):
    order = np.argsort(-logs, axis=1)[:, :count]
    return TokenDistributions(order, np.take_along_axis(logs, order, axis=1))


def test_kl_over_the_whole_vocabulary_is_scipys():
    p, q = random_logs(1), random_logs(2)
    expected = entropy(np.exp(p), np.exp(q), axis=1)
    np.testing.assert_allclose(kl_per_position(listed(p), listed(q)), expected, rtol=1e-9)


def test_kl_in_vocabulary_order_is_the_same():
    p, q = random_logs(1), random_logs(2)
    ids = np.broadcast_to(np.arange(50), p.shape)
    same_order = kl_per_position(TokenDistributions(ids, p), TokenDistributions(ids, q))
    np.testing.assert_allclose(same_order, kl_per_position(listed(p), listed(q)), rtol=1e-9)


@pytest.mark.parametrize("count", [1, 5, 20, 49])
def test_fewer_tokens_give_a_lower_bound_that_grows(count):
    for seed in range(20):
        p, q = random_logs(seed), random_logs(seed + 100)
        exact = entropy(np.exp(p), np.exp(q), axis=1)
        bound = kl_per_position(listed(p, count), listed(q, count))
        assert (bound <= exact + 1e-9).all()
        assert (bound >= 0).all()


def test_the_bound_pools_the_rest_by_hand():
    # Both list token 0 only: 0.5 against 0.25, and the rest 0.5 against 0.75.
    p = TokenDistributions(np.array([[0]]), np.log([[0.5]]))
    q = TokenDistributions(np.array([[0]]), np.log([[0.25]]))
    assert kl_per_position(p, q)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))


def test_a_distribution_is_at_no_distance_from_itself():
    # float32, as an engine gives them.
    p = listed(random_logs(3).astype(np.float32))
    np.testing.assert_allclose(kl_per_position(p, p), 0, atol=1e-6)


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="6 positions on one side, 5 on the other"):
        kl_per_position(listed(random_logs(1)), listed(random_logs(1, positions=5)))


def random_routing(seed, tokens=40):
    generator = np.random.default_rng(seed)
    return np.argsort(generator.random((tokens, len(LAYERS), 16)), axis=-1)[..., :4].astype(np.uint8)


def test_touched_shares_by_a_slow_loop():
    routings = [random_routing(1), random_routing(2, tokens=15)]
    experts = [(3, 0), (3, 7), (8, 15)]
    slots = tokens = 0
    for routing in routings:
        for token in routing:
            hits = sum((LAYERS[row], int(expert)) in experts for row in range(3) for expert in token[row])
            slots += hits
            tokens += hits > 0
    shares = touched_shares(routings, LAYERS, experts)
    assert (shares.slots_in_set, shares.tokens_touched) == (slots, tokens)
    assert (shares.num_slots, shares.num_tokens) == (55 * 12, 55)
    assert shares.slot_share == slots / (55 * 12)


def test_selection_frequency_by_a_slow_loop():
    routing = random_routing(5)
    frequency = selection_frequency([routing], LAYERS, 16)
    for row, layer in enumerate(LAYERS):
        for expert in range(16):
            assert frequency[layer][expert] == (routing[:, row] == expert).sum() / 40
    assert sum(rates.sum() for rates in frequency.values()) == pytest.approx(3 * 4)


def test_zero_computation_experts_have_no_frequency():
    """Ids from the number of experts on, which routers of some families select too."""
    routing = np.array([[[1, 19], [3, 4], [5, 16]]])
    frequency = selection_frequency([routing], LAYERS, 16)
    assert {layer: rates.sum() for layer, rates in frequency.items()} == {3: 1.0, 5: 2.0, 8: 1.0}


def test_changed_slots_ignores_the_order():
    before = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    after = np.array([[[2, 1], [3, 9]]], dtype=np.uint8)
    assert changed_slots([before], [after]) == 0.25


def test_pooled_kl_weights_tokens_alike():
    interval = pooled_kl([np.array([1.0]), np.array([0.0, 0.0, 0.0])])
    assert interval.estimate == 0.25
    assert interval.num_clusters == 2


def in_vocabulary_order(logs):
    """As an engine gives a whole vocabulary: the same ids at every position."""
    return TokenDistributions(np.broadcast_to(np.arange(logs.shape[1], dtype=np.int32), logs.shape), logs)


@pytest.mark.parametrize("as_read", [listed, in_vocabulary_order, lambda logs: listed(logs, 3)])
def test_flips_are_those_of_the_likeliest_token_however_tokens_are_listed(as_read):
    """Two texts with answers from their third and second token on, by a slow loop; position n predicts token n + 1."""
    left, right = [random_logs(1), random_logs(2)], [random_logs(1) + 0.01, random_logs(7)]
    right[0][4] = right[0][3]
    starts = [3, 2]
    flips = [
        max(range(50), key=p[position].__getitem__) != max(range(50), key=q[position].__getitem__)
        for p, q, start in zip(left, right, starts, strict=True)
        for position in range(start - 1, len(p))
    ]
    found = compare("a", "b", [as_read(one) for one in left], [as_read(one) for one in right], starts, seed=0)
    assert 0 < sum(flips) < len(flips) == 9
    assert found.token_flips == sum(flips) / len(flips)


def test_of_equally_likely_tokens_the_one_with_the_lowest_id_counts():
    """Engines list such tokens in any order: a tie is no flip."""
    logs = np.log(np.array([[0.4, 0.4, 0.2]]))
    one, other = TokenDistributions(np.array([[5, 3, 9]]), logs), TokenDistributions(np.array([[3, 5, 9]]), logs)
    assert likeliest(one).tolist() == likeliest(other).tolist() == [3]
    assert compare("a", "b", [one], [other], [1], seed=0).token_flips == 0
    nothing = TokenDistributions(np.zeros((0, 0), int), np.zeros((0, 0)))
    assert compare("a", "b", [nothing], [nothing], [1], seed=0).token_flips is None


def test_batches_keep_within_the_limit_and_lose_nothing():
    sizes = [3, 4, 9, 1, 1, 1, 20, 2]
    found = list(batches(sizes, 8))
    assert [position for batch in found for position in batch] == list(range(8))
    assert all(len(batch) == 1 or sum(sizes[p] for p in batch) <= 8 for batch in found)


def test_what_a_checkpoint_holds_is_held_against_the_papers_own_in_the_same_measure():
    names = ["base", "reroute", "drop", "drop-renorm", "drop in part", "drop-renorm in part"]
    zero = Interval(estimate=0.0, low=0.0, high=0.0, num_clusters=1)
    every = [
        Divergence(left=left, right=right, answer_tokens=zero, all_tokens=zero, first_token=zero)
        for left in names
        for right in names
        if left != right
    ]
    fidelity = Fidelity(
        num_prompts=1,
        num_answer_tokens=1,
        num_tokens=1,
        neutral_source={},
        listed_tokens=1,
        exact=True,
        action="suppress",
        divergences=every,
        touched=None,
    )
    assert [(one.left, one.right) for one in from_paper(fidelity)] == [
        ("drop-renorm", "reroute"),
        ("drop-renorm", "drop"),
        ("drop-renorm in part", "drop in part"),
    ]
    assert dict(flips_from_paper(fidelity)) == {"reroute": None, "drop": None, "drop in part": None}
    for one in from_paper(fidelity):
        one.token_flips = 0.0123
    (line,) = [one for one in MEASURE.lines([fidelity], None) if "from the paper's own" in one]
    assert line == (
        "a checkpoint's from the paper's own (drop-renorm), and flips of the likeliest token: reroute 0.0000 (1.23 %), drop"
        " 0.0000 (1.23 %), drop in part 0.0000 (1.23 %)"
    )
