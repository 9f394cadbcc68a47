"""SGLang's dumps of totals, made by a slow reference of its recorder, rank experts as the traces of the same tokens do."""

import json

import numpy as np
import pytest
from running import run_main
from tiny_models import described_tiny_r1

from ftri.analysis.class_counts import find_by_counts
from ftri.cli.find import main
from ftri.traces.class_totals import load_class_totals
from ftri.traces.reader import TraceRecord
from ftri.traces.writer import TraceWriter
from rewriter.expert_set import ExpertSet

torch = pytest.importorskip("torch")

LAYERS, FIRST_MOE, EXPERTS, TOP_K = 4, 1, 16, 4
PHYSICAL = EXPERTS + 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return described_tiny_r1(tmp_path_factory.mktemp("models") / "R1")


@pytest.fixture(scope="module")
def responses():
    """Rows [T, MoE layers, K] of four responses a class; the class favours one expert of one layer."""
    generator = np.random.default_rng(7)
    made = {}
    for label, favoured in (("refused", 3), ("answered", 9)):
        made[label] = []
        for _ in range(4):
            chances = generator.random((int(generator.integers(20, 40)), LAYERS - FIRST_MOE, EXPERTS))
            chances[:, 1, favoured] *= 3
            made[label].append(np.sort(np.argsort(-chances, axis=2)[:, :, :TOP_K], axis=2))
    return made


@pytest.fixture(scope="module")
def table():
    """Physical to logical [layers, physical experts]: every expert somewhere, four of them twice."""
    generator = np.random.default_rng(3)
    return np.stack(
        [generator.permutation([*range(EXPERTS), *generator.integers(0, EXPERTS, 4)]) for _ in range(LAYERS)]
    )


def passes_of(rows_of_responses, table):
    """The forward passes of a server: each response's first half at once, then a token at a time; physical counts."""
    generator = np.random.default_rng(1)
    for rows in rows_of_responses:
        half = len(rows) // 2
        for part in (rows[:half], *np.split(rows[half:], len(rows) - half)):
            counted = np.zeros((LAYERS, PHYSICAL), int)
            for token in part:
                for layer, selected in enumerate(token, start=FIRST_MOE):
                    for logical in selected:
                        places = [place for place in range(PHYSICAL) if table[layer][place] == logical]
                        counted[layer, places[generator.integers(len(places))]] += 1
            yield counted


def stat_dump(passes, table, buffer_size=200, num_ranks=1):
    """What the mode stat writes: a ring of steps, mapped back when it dumps, each rank's counts added."""
    ring = np.zeros((buffer_size, LAYERS, EXPERTS), np.int32)
    for number, physical in enumerate(passes):
        ring[number % buffer_size] = 0
        for layer in range(LAYERS):
            for place in np.flatnonzero(physical[layer]):
                ring[number % buffer_size, layer, table[layer, place]] += num_ranks * physical[layer, place]
    return {"rank": 0, "logical_count": torch.tensor(ring), "average_utilization_rate_over_window": None}


def pass_dump(passes, table):
    """What the mode per_pass writes."""
    records = [
        {
            "forward_pass_id": number,
            "rank": 0,
            "gatherer_key": "primary",
            "global_physical_count": torch.tensor(counted),
        }
        for number, counted in enumerate(passes)
    ]
    return {"records": records, "last_physical_to_logical_map": torch.tensor(table)}


def write_dumps(folder, responses, table, make=stat_dump, **options):
    for label, rows in responses.items():
        torch.save(make(passes_of(rows, table), table, **options), folder / f"{label}.pt")
    return [f"{label}={folder / label}.pt" for label in responses]


def bring(*words):
    return run_main(main, "mote-ftri", "import", *words)


def write_traces(folder, model, responses):
    manifest = {
        "model": "R1",
        "config_sha256": "0" * 64,
        "moe_layers": [1, 2, 3],
        "num_experts": EXPERTS,
        "top_k": TOP_K,
    }
    with TraceWriter(folder, manifest) as writer:
        for label, several in responses.items():
            for number, rows in enumerate(several):
                prompt, completion = list(range(10)), list(range(len(rows) - 9))
                writer.append(
                    TraceRecord(
                        f"{label}{number}", 0, "p", "p", prompt, completion, "t", "stop", experts=rows.astype(np.uint8)
                    )
                )
    names = [f"{label}{number},{label}" for label, several in responses.items() for number in range(len(several))]
    labels = folder.parent / "labels.csv"
    labels.write_text("\n".join(["prompt_id,label", *names]))
    return labels


@pytest.mark.parametrize("statistic", ["risk-difference", "npmi", "log-odds"])
def test_dumps_of_both_modes_rank_as_the_traces_of_the_same_tokens(model, responses, table, tmp_path, statistic):
    labels = write_traces(tmp_path / "traces", model, responses)
    options = ["--behavior", "refused", "-k", 5, "--statistic", statistic]
    traced = run_main(
        main, "mote-ftri", tmp_path / "traces", *options, "--positions", "all", "--labels", labels, "-o",
        tmp_path / "traced.json", "--permutations", 99, "--bootstraps", 10,
    )  # fmt: skip
    assert traced.returncode == 0, traced.stderr
    expected = [(entry.layer, entry.expert) for entry in ExpertSet.load(tmp_path / "traced.json").experts]
    assert expected[0] == (2, 3)
    for make in (stat_dump, pass_dump):
        (tmp_path / make.__name__).mkdir()
        pairs = write_dumps(tmp_path / make.__name__, responses, table, make)
        totals = tmp_path / f"{make.__name__}.json"
        result = bring(*pairs, "--model", model, "-o", totals)
        assert result.returncode == 0, result.stderr
        assert "dumps of totals hold no single responses" in result.stderr and "overwritten" not in result.stderr
        found = run_main(main, "mote-ftri", totals, *options, "-o", tmp_path / "found.json")
        assert found.returncode == 0, found.stderr
        document = ExpertSet.load(tmp_path / "found.json")
        assert [(entry.layer, entry.expert) for entry in document.experts] == expected
        assert document.model == "R1"
        assert document.provenance["method"].endswith("SGLang's expert distribution recorder")
        assert [source["class"] for source in document.provenance["totals"]] == ["refused", "answered"]


def test_totals_are_exact_and_survive_the_file(model, responses, table, tmp_path):
    result = bring(*write_dumps(tmp_path, responses, table), "--model", model, "-o", tmp_path / "totals.json", "--json")
    num_tokens = {label: sum(len(rows) for rows in several) for label, several in responses.items()}
    assert json.loads(result.stdout)["num_tokens"] == num_tokens
    totals = load_class_totals(tmp_path / "totals.json")
    for label, several in responses.items():
        for row, layer in enumerate((1, 2, 3)):
            expected = np.bincount(np.concatenate([rows[:, row].ravel() for rows in several]), minlength=EXPERTS)
            np.testing.assert_array_equal(totals.classes[label].counts[layer], expected)
            assert totals.classes[label].num_tokens[layer] == num_tokens[label]


def test_the_shares_are_the_same_when_every_rank_counts_each_token_and_when_files_add_up(
    model, responses, table, tmp_path
):
    (tmp_path / "tp").mkdir()
    (tmp_path / "halves").mkdir()
    assert bring(*write_dumps(tmp_path, responses, table), "--model", model, "-o", tmp_path / "a.json").returncode == 0
    ranks = write_dumps(tmp_path / "tp", responses, table, num_ranks=8)
    assert bring(*ranks, "--model", model, "-o", tmp_path / "b.json").returncode == 0
    parts = []
    for half in (0, 1):
        for label, several in responses.items():
            path = tmp_path / "halves" / f"{label}{half}.pt"
            torch.save(stat_dump(passes_of(several[2 * half : 2 * half + 2], table), table), path)
            parts.append(f"{label}={path}")
    assert bring(*parts, "--model", model, "-o", tmp_path / "c.json").returncode == 0
    scores = [
        find_by_counts(load_class_totals(tmp_path / f"{name}.json"), "refused", 3, "risk-difference").scores
        for name in "abc"
    ]
    np.testing.assert_allclose(scores[1], scores[0])
    np.testing.assert_allclose(scores[2], scores[0])


def test_a_full_ring_is_said(model, responses, table, tmp_path):
    pairs = write_dumps(tmp_path, responses, table, buffer_size=32)
    result = bring(*pairs, "--model", model, "-o", tmp_path / "totals.json")
    assert result.returncode == 0
    assert "each of the buffer's 32 steps holds counts" in result.stderr
    assert "--expert-distribution-recorder-buffer-size -1" in result.stderr


def faulty(change):
    """A dump of one step whose counts were changed."""
    counts = np.zeros((1, LAYERS, EXPERTS), np.int32)
    counts[:, FIRST_MOE:] = TOP_K
    return {"rank": 0, "logical_count": torch.tensor(change(counts))}


def added(counts):
    counts[0, 2, 0] += 1
    return counts


@pytest.mark.parametrize(
    ("dump", "words", "sentence"),
    [
        (faulty(lambda counts: counts), ["{}"], "mote-ftri import CLASS=FILE"),
        (faulty(lambda counts: counts), ["refused={}", "{}"], "expected CLASS=FILE for all of them or for none"),
        (faulty(lambda counts: counts), ["refused=other.gguf"], "mote-ftri --imatrix CLASS=FILE"),
        (faulty(lambda counts: counts[:, :2]), ["refused={}"], "counts [layers, experts] [2, 16], expected"),
        (faulty(lambda counts: counts[0]), ["refused={}"], "expected integers [steps, layers, experts]"),
        (faulty(lambda counts: 0 * counts), ["refused={}"], "counts nothing in layers 1, 2, 3"),
        (faulty(added), ["refused={}"], "layer 2 counts 65 selections, expected a multiple of 4"),
        ({"records": [{"forward_pass_id": 0}], "last_physical_to_logical_map": torch.zeros(LAYERS, 16, dtype=torch.int)},
         ["refused={}"], "give it without CLASS= if its mode is per_token"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_one_sentence(model, tmp_path, dump, words, sentence):
    torch.save(dump, tmp_path / "d.pt")
    result = bring(*(word.format(tmp_path / "d.pt") for word in words), "--model", model, "-o", tmp_path / "t")
    assert result.returncode == 1 and sentence in result.stderr, result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "{", "is not JSON"),
        (lambda text: text.replace("mote.class-totals/1", "mote.expert-set/1"), "expected a trace folder, or the class totals"),
        (lambda text: text.replace('"top_k": 4', '"top_k": 5'), "selections, expected"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_totals_is_one_sentence(model, responses, table, tmp_path, change, sentence):
    totals = tmp_path / "totals.json"
    assert bring(*write_dumps(tmp_path, responses, table), "--model", model, "-o", totals).returncode == 0
    totals.write_text(change(totals.read_text()))
    result = run_main(main, "mote-ftri", totals, "--behavior", "refused")
    assert result.returncode == 1 and sentence in result.stderr and result.stderr.count("\n") == 1


def test_an_output_that_exists_stays(model, responses, table, tmp_path):
    (tmp_path / "totals.json").write_text("mine")
    result = bring(*write_dumps(tmp_path, responses, table), "--model", model, "-o", tmp_path / "totals.json")
    assert result.returncode == 1 and "expected a new name" in result.stderr
    assert (tmp_path / "totals.json").read_text() == "mine"
