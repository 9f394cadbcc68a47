"""Counting selections while traces stream past: positions, storage, and nothing kept that is not needed."""

import numpy as np
import pytest
import synthetic

from ftri.analysis import maps
from ftri.labels import contrast
from ftri.traces.reader import TraceReader, TraceRecord
from ftri.traces.writer import write_traces
from rewriter.errors import InputError


def slow_counts(experts, num_experts):
    num_tokens, num_layers, num_selected = experts.shape
    counts = np.zeros((num_layers, num_experts), int)
    for token in range(num_tokens):
        for layer in range(num_layers):
            for slot in range(num_selected):
                counts[layer, experts[token, layer, slot]] += 1
    return counts


@pytest.mark.parametrize(("num_experts", "dtype"), [(6, np.uint8), (256, np.uint8), (300, np.uint16)])
def test_counts_match_a_loop(num_experts, dtype):
    experts = np.random.default_rng(0).integers(0, num_experts, (37, 4, 2)).astype(dtype)
    assert (maps.count_selections(experts, num_experts).reshape(4, -1) == slow_counts(experts, num_experts)).all()
    assert maps.count_selections(experts[:0], num_experts).sum() == 0


def test_blocks_of_tokens_add_up(monkeypatch):
    experts = np.random.default_rng(0).integers(0, 6, (37, 4, 2)).astype(np.uint8)
    whole = maps.count_selections(experts, 6)
    monkeypatch.setattr(maps, "BLOCK_TOKENS", 5)
    assert (maps.count_selections(experts, 6) == whole).all()


def test_an_expert_id_that_the_model_does_not_have():
    with pytest.raises(InputError, match="expert id 6, expected ids below 6"):
        maps.count_selections(np.full((1, 1, 1), 6, np.uint8), 6)


def test_positions():
    rows = np.arange(9, dtype=np.uint8)[:, None, None]
    record = TraceRecord("p", 0, "p", "p", [1, 2, 3, 4, 5, 6], [7, 8, 9, 10], "t", "stop", experts=rows)
    shared = maps.SharedTokens(prefix=2, suffix=1)
    expected = {
        "prompt": [0, 1, 2, 3, 4, 5],
        "completion": [6, 7, 8],
        "all": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "shared": [0, 1, 5],
        "varying": [2, 3, 4],
        "last": [5],
    }
    assert {name: maps.counted_rows(record, name, shared)[:, 0, 0].tolist() for name in maps.POSITIONS} == expected


@pytest.mark.parametrize(
    ("prompts", "prefix", "suffix"),
    [
        ([[1, 2, 3, 9], [1, 2, 4, 4, 9], [1, 2, 9]], 2, 1),
        ([[1, 2], [1, 2]], 2, 0),
        ([[1, 1, 1], [1, 1]], 2, 0),
        ([[5]], 1, 0),
        ([], 0, 0),
    ],
)
def test_shared_tokens_do_not_overlap(prompts, prefix, suffix):
    assert maps.shared_tokens(iter(prompts)) == maps.SharedTokens(prefix, suffix)


def test_the_store_is_the_same_in_memory_and_in_a_file():
    generator = np.random.default_rng(1)
    rows = generator.integers(0, 100, (50, 12)).astype(np.float32)
    memory, file = maps.MapStore(12), maps.MapStore(12, max_memory_bytes=4 * 12 * 7)
    for row in rows:
        memory.append(row)
        file.append(row)
    assert file._file is not None and memory._file is None
    weights = generator.integers(0, 3, (4, 50))
    for store in (memory, file):
        assert len(store) == 50
        assert (np.concatenate([block for _, block in store.blocks()]) == rows).all()
        assert (store.weighted_sums(weights) == weights @ rows.astype(float)).all()
        assert (store.row(33) == rows[33]).all()


def test_a_store_in_a_file_goes_on_growing_after_it_was_read():
    store = maps.MapStore(3, max_memory_bytes=12)
    store.append(np.array([1, 2, 3]))
    assert len(list(store.blocks())) == 1
    store.append(np.array([4, 5, 6]))
    assert np.concatenate([block for _, block in store.blocks()]).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_reading_traces_counts_what_takes_part_and_what_does_not(tmp_path):
    plan = synthetic.Plan(times=("1990", "1991", "1992"))
    records = list(synthetic.records(plan))
    records[0].finish_reason = "length"
    write_traces(tmp_path / "t", synthetic.manifest(plan), records)
    compared = contrast.parse_contrast("refused")
    found = maps.read_maps([TraceReader(tmp_path / "t")], compared, contrast.RuleLabeller(compared))
    assert found.dropped == {"TRUNCATED": 1} and len(found.observations) == len(records) - 1
    assert found.shared == maps.SharedTokens(2, 2)
    for row, record in enumerate(records[1:]):
        prompt = record.experts[: len(record.prompt_token_ids)]
        assert (found.counts.row(row).reshape(found.shape) == slow_counts(prompt, plan.num_experts)).all()
        assert found.num_tokens[row] == len(record.prompt_token_ids)
