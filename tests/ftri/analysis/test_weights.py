"""Gains and shortfalls from traces that keep weights, against the paper's own edit of the same tokens and slow loops.

Letters of shapes: N tokens, E experts, K selected experts.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import build_checkpoint, down_proj_name, read_tensors, write_set
from made_traces import MANIFEST, make_record

from ftri.analysis.weights import GAIN_WORDS, GainWord, estimate_gains, measure_shortfall
from ftri.cli.rewrite import main as rewrite_main
from ftri.cli.verify import main as verify_main
from ftri.traces.writer import write_traces
from rewriter.errors import InputError

N, E, K = 400, 16, 4
LAYERS = [1, 2, 3, 4]
SCALE = 2.5


def select(choice: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A router's ids and weights [N, K]: the best by `choice`, weighed by their scores, which are normalised and scaled."""
    ids = np.sort(np.argsort(-choice, axis=1)[:, :K], axis=1)
    weights = np.take_along_axis(scores, ids, axis=1)
    return ids, weights / weights.sum(axis=1, keepdims=True) * SCALE


def paper(ids: np.ndarray, weights: np.ndarray, chosen: list[int]) -> np.ndarray:
    """The share of a token's weight that the paper gives each stimulated expert, token by token; [N]."""
    shares = []
    for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        largest = max(weight)
        kept = {expert: one for expert, one in zip(token, weight, strict=True) if expert not in chosen}
        for _ in range(len(kept) + len(chosen) - K):
            del kept[min(kept, key=lambda expert: (kept[expert], expert))]
        shares.append(largest / (sum(kept.values()) + len(chosen) * largest))
    return np.array(shares)


def routings(layer_arrays: dict[int, tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """One response [T, L, K] of the arrays of some layers; the others select the first experts."""
    experts = np.zeros((N, len(LAYERS), K), np.uint8) + np.arange(K, dtype=np.uint8)
    weights = np.full((N, len(LAYERS), K), SCALE / K, np.float32)
    for layer, (ids, own) in layer_arrays.items():
        experts[:, LAYERS.index(layer)], weights[:, LAYERS.index(layer)] = ids, own
    return [(experts[: N // 3], weights[: N // 3]), (experts[N // 3 :], weights[N // 3 :])]


@pytest.mark.parametrize("chosen", [[5], [5, 9], [0, 5, 9]])
@pytest.mark.parametrize("word", GAIN_WORDS)
def test_the_gain_is_the_closest_or_the_one_that_meets_the_mean(chosen: list[int], word: GainWord) -> None:
    """On a variant's own traces the paper's weight of every token is known: that of its edit of the base's selection."""
    scores = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(N, E))))
    stimulated = scores.copy()
    stimulated[:, chosen] += 10
    ids, weights = select(stimulated, scores)
    expected = paper(*select(scores, scores), chosen)
    found = estimate_gains(routings({2: (ids, weights)}), LAYERS, [(2, expert) for expert in chosen], word)
    for one, expert in zip(found, chosen, strict=True):
        own = np.array([weight[list(token).index(expert)] for token, weight in zip(ids, weights, strict=True)]) / SCALE
        assert (one.layer, one.expert, one.num_tokens, one.num_counted) == (2, expert, N, N)
        # Against numpy's own solver of least squares.
        closest = float(np.linalg.lstsq(own[:, None], expected, rcond=None)[0][0])
        assert one.closest == pytest.approx(closest, rel=1e-5)
        assert one.meets_mean == pytest.approx(expected.mean() / own.mean(), rel=1e-5)
        assert one.gain == {"auto": one.closest, "mean": one.meets_mean}[word]
        assert one.own_share == pytest.approx(own.mean(), rel=1e-5)
        assert one.paper_share == pytest.approx(expected.mean(), rel=1e-5)
        assert one.meets_mean * one.own_share == pytest.approx(one.paper_share, rel=1e-5)
        assert one.rms_with == pytest.approx(np.sqrt(((one.gain * own - expected) ** 2).mean()), rel=1e-4)
        assert one.rms_without == pytest.approx(np.sqrt(((own - expected) ** 2).mean()), rel=1e-4)
        assert one.low < one.median < one.high
        here = 1 - np.where(np.isin(ids, chosen), weights, 0).sum(axis=1) / SCALE
        assert one.others == pytest.approx((here / (1 - len(chosen) * expected)).mean(), rel=1e-4)
        assert one.rms_closest <= min(one.rms_without, one.rms_meets_mean)
        assert one.rms_with == {"auto": one.rms_closest, "mean": one.rms_meets_mean}[word]


def test_tokens_that_do_not_select_all_of_a_layers_experts_are_not_counted() -> None:
    scores = 1 / (1 + np.exp(-np.random.default_rng(1).normal(size=(N, E))))
    ids, weights = select(scores, scores)
    (one, two) = estimate_gains(routings({2: (ids, weights)}), LAYERS, [(2, 3), (2, 7)])
    counted = sum({3, 7} <= set(token) for token in ids.tolist())
    assert one.num_counted == two.num_counted == counted and 0 < counted < N
    with pytest.raises(InputError, match=r"layer 1 expert 9: no token of the traces selects it, so they do not say"):
        estimate_gains(routings({2: (ids, weights)}), LAYERS, [(1, 9)])
    with pytest.raises(
        InputError, match="layer 1 expert 0: no token of the traces selects it together with the layer's other"
    ):
        estimate_gains(routings({}), LAYERS, [(1, 0), (1, 9)])


def test_the_shortfall_of_a_drop_by_a_slow_loop() -> None:
    scores = 1 / (1 + np.exp(-np.random.default_rng(2).normal(size=(N, E))))
    ids, weights = select(scores, scores)
    strengths = {(2, 3): 0.5, (2, 7): 1.0, (3, 15): 1.0}
    found = measure_shortfall(routings({2: (ids, weights)}), LAYERS, strengths)
    lost = [
        sum(weight * strengths.get((2, expert), 0) for expert, weight in zip(token, own, strict=True)) / sum(own)
        for token, own in zip(ids.tolist(), weights.tolist(), strict=True)
    ]
    touched = [one for one in lost if one]
    assert (found.num_tokens, found.num_touched) == (N, len(touched))
    assert found.mean == pytest.approx(np.mean(touched), rel=1e-5)
    assert found.high == pytest.approx(np.quantile(touched, 0.95), rel=1e-5)
    nobody = measure_shortfall(routings({}), LAYERS, {(2, 9): 1.0})
    assert (nobody.num_touched, nobody.mean) == (0, 0)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def run_main(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run_main


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "base")


def write_weighed(folder: Path, parts: list[tuple[np.ndarray, np.ndarray]], **changes: Any) -> Path:
    """A trace folder of the test's checkpoint with these responses."""
    records = []
    for number, (experts, weights) in enumerate(parts):
        record = make_record(number)
        record.prompt_token_ids, record.completion_token_ids = [1] * len(experts), [2]
        record.experts, record.weights = experts, weights
        records.append(record)
    manifest = MANIFEST | {"moe_layers": LAYERS, "num_experts": E, "top_k": K, "weights": "float32"} | changes
    write_traces(folder, manifest, records)
    return folder


def stimulated_traces(folder: Path, **changes: Any) -> Path:
    scores = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(N, E))))
    stimulated = scores.copy()
    stimulated[:, 5] += 10
    return write_weighed(folder, routings({2: select(stimulated, scores)}), **changes)


def test_from_traces_to_a_verified_variant(base: Path, tmp_path: Path, run: Run) -> None:
    traces = stimulated_traces(tmp_path / "traces")
    chosen, out = write_set(tmp_path / "english.json", [(2, 5)]), tmp_path / "out"
    asked = ("--model", base, "--stimulate", chosen, "--gain", "auto", "--traces", traces, "-o", out)
    code, plan, _ = run(rewrite_main, *asked, "--dry-run")
    assert code == 0 and not out.exists()
    (found,) = estimate_gains(routings_of(traces), LAYERS, [(2, 5)])
    assert f"output x {found.gain:.6g})" in plan
    assert (
        f"note: layer 2 expert 5: gain {found.gain:g}. The router gives it {found.own_share:.3f} of a token's weight"
        in plan
    )
    assert f"{found.rms_without:.3f} without a gain, {found.rms_with:.3f} with it; the least is" in plan
    code, text, error = run(rewrite_main, *asked, "--json")
    assert code == 0, error
    block = json.loads((out / "config.json").read_text())["mote"]
    assert block["experts"][0]["gain"] == found.gain
    kept = block["expert_sets"][0]["provenance"]["by_traces"]
    assert kept["numbers"][0]["gain"] == found.gain and kept["numbers"][0]["num_counted"] == N
    assert "90 % of tokens lie between" in (out / "README.md").read_text()
    before, after = (read_tensors(at)[down_proj_name(2, 5)].data for at in (base, out))
    assert before != after
    code, verified, error = run(verify_main, out, "--base", base)
    assert code == 0 and "proved from the bytes: gain" in verified, error


def routings_of(traces: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    from ftri.analysis.weights import WeightedTraces

    return list(WeightedTraces.open(traces).routings())


def test_a_strength_is_told_what_it_lacks(base: Path, tmp_path: Path, run: Run) -> None:
    config_sha256 = hashlib.sha256((base / "config.json").read_bytes()).hexdigest()
    scores = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(N, E))))
    traces = write_weighed(tmp_path / "traces", routings({2: select(scores, scores)}), config_sha256=config_sha256)
    chosen = write_set(tmp_path / "refusal.json", [(2, 5), (2, 6)])
    asked = ("--model", base, "--suppress", chosen, "--traces", traces, "-o", tmp_path / "out", "--dry-run")
    found = measure_shortfall(routings_of(traces), LAYERS, {(2, 5): 0.5, (2, 6): 0.5})
    _, plan, _ = run(rewrite_main, *asked, "--strength", 0.5)
    assert (
        f"note: drop against drop-renorm: {found.num_touched / N:.1%} of {N} tokens select a suppressed expert" in plan
    )
    assert f"lacks {found.mean:.1%} of its weight in the mean" in plan
    _, plan, _ = run(rewrite_main, *asked, "--semantics", "drop")
    assert f"lacks {2 * found.mean:.1%} of its weight in the mean" in plan
    code, _, error = run(rewrite_main, *asked)
    assert code == 1 and "expected --stimulate, --strength or --semantics drop with it" in error


def test_traces_of_the_base_say_how_few_tokens_they_count(base: Path, tmp_path: Path, run: Run) -> None:
    config_sha256 = hashlib.sha256((base / "config.json").read_bytes()).hexdigest()
    scores = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(N, E))))
    ids, weights = select(scores, scores)
    chosen = write_set(tmp_path / "english.json", [(2, 5)])
    own = write_weighed(tmp_path / "own", routings({2: (ids, weights)}), config_sha256=config_sha256)
    other = write_weighed(tmp_path / "other", routings({2: (ids, weights)}))
    asked = ("--model", base, "--stimulate", chosen, "--gain", "auto", "-o", tmp_path / "out", "--dry-run", "--traces")
    _, plan, _ = run(rewrite_main, *asked, own)
    counted = int((ids == 5).any(axis=1).sum())
    assert f"These are traces of the base, of which as few as {counted} of {N} tokens select an expert" in plan
    code, _, error = run(rewrite_main, *asked, other)
    assert code == 1
    assert (
        f"in which {counted} of {N} tokens select layer 2 expert 5, expected traces of the base or of a variant"
        in error
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": None}, "keeps no weights of the selected experts, expected some; record with --weights float32"),
        ({"num_experts": 32}, "is of a model with 32 experts, expected 16"),
        ({"moe_layers": [0, 1, 2, 3]}, "is of a model with [0, 1, 2, 3] MoE layers, expected [1, 2, 3, 4]"),
    ],
)
def test_traces_that_do_not_fit_are_refused(
    base: Path, tmp_path: Path, run: Run, changes: dict[str, Any], sentence: str
) -> None:
    traces = stimulated_traces(tmp_path / "traces", **changes)
    chosen = write_set(tmp_path / "english.json", [(2, 5)])
    asked = ("--model", base, "--stimulate", chosen, "--gain", "auto", "--traces", traces, "-o", tmp_path / "out")
    code, out, error = run(rewrite_main, *asked)
    assert code == 1 and not out and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_given_gain_is_looked_at_and_kept(base: Path, tmp_path: Path, run: Run) -> None:
    traces = stimulated_traces(tmp_path / "traces")
    chosen = write_set(tmp_path / "english.json", [(2, 5)])
    asked = ("--model", base, "--stimulate", chosen, "--traces", traces, "-o", tmp_path / "out", "--dry-run")
    (found,) = estimate_gains(routings_of(traces), LAYERS, [(2, 5)], {(2, 5): 1.25})
    _, plan, _ = run(rewrite_main, *asked, "--gain", 1.25)
    assert found.sentence() in plan and "gain 1.25." in found.sentence()
    _, plan, _ = run(rewrite_main, *asked)
    assert "layer 2 expert 5: gain 1. The router" in plan and "output x" not in plan


def uneven(folder: Path) -> Path:
    """Two experts a token and one that is stimulated: half of a token's weight on a tenth of the tokens, little on the others."""
    ids = np.tile(np.array([1, 5, 8, 9]), (N, 1))
    weights = np.tile(np.array([1.0, 0.05, 0.0, 0.0]), (N, 1))
    weights[::10, 1] = 1.0
    return write_weighed(folder, routings({2: (ids, weights)}))


def test_where_the_share_is_uneven_the_mean_is_worse_than_nothing_and_the_plan_warns(
    base: Path, tmp_path: Path, run: Run
) -> None:
    traces, chosen = uneven(tmp_path / "traces"), write_set(tmp_path / "up.json", [(2, 5)])
    own = np.where(np.arange(N) % 10 == 0, 0.5, 0.05 / 1.05)
    closest, mean = 0.5 * own.sum() / (own**2).sum(), 0.5 / own.mean()
    asked = ("--model", base, "--stimulate", chosen, "--traces", traces, "-o", tmp_path / "out")
    _, plan, _ = run(rewrite_main, *asked, "--gain", "mean", "--dry-run")
    (one,) = estimate_gains(routings_of(traces), LAYERS, [(2, 5)], "mean")
    assert one.gain == pytest.approx(mean, rel=1e-5) and one.closest == pytest.approx(closest, rel=1e-5)
    assert one.is_no_closer and one.rms_closest < one.rms_without < one.rms_with
    warning = (
        f"WARNING: token by token, the gain of layer 2 expert 5 ({one.rms_with:.3f} against {one.rms_without:.3f})"
    )
    assert f"note: {warning} is no closer to the paper's weight than no gain" in plan
    _, plan, _ = run(rewrite_main, *asked, "--gain", "auto", "--dry-run")
    assert "WARNING" not in plan and f"output x {one.closest:.6g})" in plan
    assert f"by {one.closest:g}, and {one.meets_mean:g}, which would meet the mean, leaves {one.rms_with:.3f}" in plan
    # In what is written too: the record and the card.
    code, _, error = run(rewrite_main, *asked, "--gain", "mean")
    assert code == 0, error
    assert warning in (tmp_path / "out" / "README.md").read_text()
    block = json.loads((tmp_path / "out" / "config.json").read_text())["mote"]
    kept = block["expert_sets"][0]["provenance"]["by_traces"]
    assert kept["sentences"][0].startswith(warning)
    assert kept["numbers"][0]["closest"] == one.closest and kept["numbers"][0]["meets_mean"] == one.meets_mean


def test_a_gain_that_comes_to_exactly_1_takes_the_sets_own_away(base: Path, tmp_path: Path, run: Run) -> None:
    """The set's old gain used to stay."""
    ids, weights = np.tile(np.array([1, 5, 8, 9]), (N, 1)), np.tile(np.array([1.0, 1.0, 0.5, 0.25]), (N, 1))
    traces = write_weighed(tmp_path / "traces", routings({2: (ids, weights)}))
    chosen = write_set(tmp_path / "up.json", [], experts=[{"layer": 2, "expert": 5, "gain": 3.0}])
    asked = ("--model", base, "--stimulate", chosen, "--traces", traces, "-o", tmp_path / "out")
    for word in GAIN_WORDS:
        code, plan, error = run(rewrite_main, *asked, "--gain", word, "--dry-run")
        assert code == 0 and "layer 2 expert 5: gain 1." in plan and "output x" not in plan, error


def test_where_traces_lie_is_not_told(base: Path, tmp_path: Path, run: Run) -> None:
    """A manifest may hold the path that a recorder was given; records and cards are shared."""
    traces = stimulated_traces(tmp_path / "traces", model="/home/somebody/models/R1")
    chosen = write_set(tmp_path / "english.json", [(2, 5)])
    asked = ("--model", base, "--stimulate", chosen, "--gain", "auto", "--traces", traces, "-o", tmp_path / "out")
    code, _, error = run(rewrite_main, *asked)
    assert code == 0, error
    config = (tmp_path / "out" / "config.json").read_text()
    block = json.loads(config)["mote"]
    assert block["expert_sets"][0]["provenance"]["by_traces"]["model"] == "R1" and "somebody" not in config
