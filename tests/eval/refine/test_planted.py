"""A planted model with a known causal expert and a louder correlated one: the search finds the cause, correlation does not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.answers.arms import Arm
from eval.answers.journal import Journal
from eval.answers.live import TokenDistributions
from eval.refine.bench import Bench, EditBench, Neutral
from eval.refine.deciding import grow_tree, probe_for
from eval.refine.growing import grow
from eval.refine.screening import active_experts, pool, screened
from ftri.analysis.resonance import resonance_map, top_experts

LAYERS, EXPERTS, VOCABULARY = (1, 2, 3), 16, 12
CAUSE, LOUD = (2, 5), (3, 7)
SENSITIVE, HARMLESS, SORRY, WELL, END = 3, 4, 5, 6, 7


class PlantedModel:
    """Refuses after SENSITIVE, unless CAUSE is suppressed. LOUD fires most on such prompts and does nothing to refusals."""

    def __init__(self) -> None:
        self.num_sequences = 0

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterable[TokenDistributions]:
        for tokens, arm in zip(sequences, arms, strict=True):
            self.num_sequences += 1
            rows = np.full((len(tokens) - 1, VOCABULARY), 0.02)
            for position in range(len(tokens) - 1):
                refuses = SENSITIVE in tokens[: position + 1] and CAUSE not in arm.suppress
                rows[position, SORRY if refuses else WELL] = 0.9
                # Every suppressed expert disturbs neutral text a little, the loud one more.
                rows[position, 0] += 0.01 * len(arm.suppress) + 0.1 * (LOUD in arm.suppress)
            rows /= rows.sum(axis=1, keepdims=True)
            order = np.argsort(-rows, axis=1)[:, :num_listed]
            yield TokenDistributions(order.astype(np.int32), np.log(np.take_along_axis(rows, order, axis=1)))


def planted_counts(generator: np.random.Generator, sensitive: Sequence[bool]) -> np.ndarray:
    """Prompt activation maps int [P, L, E]: LOUD is selected by sensitive prompts, CAUSE by no prompt's tokens."""
    counts = generator.integers(0, 3, (len(sensitive), len(LAYERS), EXPERTS))
    counts[:, LAYERS.index(CAUSE[0]), CAUSE[1]] = 0
    counts[:, LAYERS.index(LOUD[0]), LOUD[1]] += 5 * np.asarray(sensitive)
    return counts


@pytest.fixture
def bench() -> Bench:
    # The last token of a sequence is forced, so each has one more behind the place that decides.
    prompts = [[1, kind, 2] for kind in (SENSITIVE, HARMLESS) for _ in range(10)]
    responses = [[8, SORRY, END] if SENSITIVE in prompt else [8, WELL, END] for prompt in prompts]
    tree = grow_tree(responses, [SENSITIVE in prompt for prompt in prompts])
    probes = [
        probe_for(tree, str(number), prompt, [*response])
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        if SENSITIVE in prompt
    ]
    neutral = Neutral(((1, HARMLESS, 2, 8, WELL, END),), (3,))
    return Bench(tuple(probe for probe in probes if probe is not None), neutral, 8)


def test_search_finds_the_cause_and_correlation_the_loud_one(bench: Bench, tmp_path: Path) -> None:
    sensitive = [number % 2 == 0 for number in range(40)]
    counts = planted_counts(np.random.default_rng(0), sensitive)
    (row, expert), *_ = top_experts(resonance_map(counts, np.array(sensitive)), 1)
    assert (LAYERS[row], expert) == LOUD

    model = PlantedModel()
    with Journal(tmp_path / "journal.jsonl") as journal:
        measuring = EditBench(model, journal, {"model": "planted"}, bench, "reroute")
        base = measuring.base().chances
        assert min(base) > 0.9
        rates = {layer: np.full(EXPERTS, 0.1) for layer in LAYERS}
        candidates = active_experts(rates, 0.01)
        rows = screened(candidates, measuring.measure([(pair,) for pair in candidates]), base, seed=0)
        assert rows[0].pair == CAUSE
        assert rows[0].moved > 0.9
        assert rows[0].shift.high < 0
        assert next(row for row in rows if row.pair == LOUD).moved < 0.05
        growth = grow(pool(rows, 4), measuring.measure, base, max_experts=4, budget_kl=None)
        assert growth.best is not None
        assert growth.best.experts == (CAUSE,)


def test_a_second_run_takes_everything_from_the_journal(bench: Bench, tmp_path: Path) -> None:
    sets = [((layer, 0),) for layer in LAYERS]
    with Journal(tmp_path / "journal.jsonl") as journal:
        first = EditBench(PlantedModel(), journal, {"model": "planted"}, bench, "reroute").measure(sets)
    again = PlantedModel()
    with Journal(tmp_path / "journal.jsonl") as journal:
        measuring = EditBench(again, journal, {"model": "planted"}, bench, "reroute")
        assert measuring.measure(sets) == first
        assert again.num_sequences == 0
        # Another model's measurements are its own.
        other = EditBench(again, journal, {"model": "another"}, bench, "reroute")
        assert other.measure(sets) == first
        assert again.num_sequences > 0


def test_edits_are_kept_one_by_one(bench: Bench, tmp_path: Path) -> None:
    order = [((1, number),) for number in random.Random(0).sample(range(EXPERTS), 10)]
    done: list[int] = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        measuring = EditBench(PlantedModel(), journal, {"model": "planted"}, bench, "drop")
        measuring.measure(order[:4])
        measuring.measure(order, done.append)
    assert done == [4, 6]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert kinds.count("value") == len(order)
