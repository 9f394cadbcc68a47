"""mote-ftri on files of llama-imatrix: the ranking against plain arithmetic, what it says is missing, and bad input."""

import json

import numpy as np
import pytest
from gguf_files import STRING, Value, gguf_bytes, imatrix_bytes
from gguf_files import Tensor as FileTensor
from running import run_main

from ftri.cli.find import main
from rewriter.expert_set import ExpertSet

NUM_EXPERTS, TOP_K = 8, 2
HALVES = np.float32(5.5).tobytes()


def mote_ftri(*arguments):
    return run_main(main, "mote-ftri", *arguments)


def counts_of(seed, num_tokens, favoured=()):
    """Selections [E] of each layer that add up to top-k a token, with some experts chosen more often."""
    rng = np.random.default_rng(seed)
    made = {}
    for layer in (3, 4):
        weights = np.ones(NUM_EXPERTS)
        for at, expert in favoured:
            weights[expert] += 3 * (at == layer)
        made[layer] = rng.multinomial(TOP_K * num_tokens, weights / weights.sum())
    return made


@pytest.fixture
def files(tmp_path):
    made = {
        "refused": counts_of(1, 2000, [(3, 5), (4, 1)]),
        "answered": counts_of(2, 3000),
        "other": counts_of(3, 1500),
    }
    for name, counts in made.items():
        (tmp_path / f"{name}.gguf").write_bytes(imatrix_bytes(counts, top_k=TOP_K))
    return tmp_path, made


def options(folder, *names):
    return [part for name in names for part in ("--imatrix", f"{name}={folder / name}.gguf")]


def test_ranks_by_the_share_of_tokens(files, tmp_path):
    folder, made = files
    output = tmp_path / "set.json"
    result = mote_ftri(*options(folder, "refused", "answered", "other"), "--behavior", "refused", "-k", 4, "-o", output)
    assert result.returncode == 0, result.stderr
    own, rest = [], []
    for layer in (3, 4):
        own.append(made["refused"][layer] / 2000)
        rest.append((made["answered"][layer] + made["other"][layer]) / 4500)
    scores = np.stack(own) - np.stack(rest)
    order = np.argsort(-scores.ravel(), kind="stable")[:4]
    found = ExpertSet.load(output)
    assert [(entry.layer, entry.expert) for entry in found.experts] == [
        (3 + flat // NUM_EXPERTS, flat % NUM_EXPERTS) for flat in order.tolist()
    ]
    assert {(entry.layer, entry.expert) for entry in found.experts[:2]} == {(3, 5), (4, 1)}
    document = json.loads(output.read_text())
    assert [entry["score"] for entry in document["experts"]] == pytest.approx(scores.ravel()[order])
    assert document["experts"][0]["share_class"] > document["experts"][0]["share_others"]
    assert document["behavior"] == "refused" and document["layer_index"] == "model"
    assert "no p-values" in document["provenance"]["not_computed"] and "no t-SNE" in result.stderr
    assert [source["class"] for source in document["provenance"]["totals"]] == ["refused", "answered", "other"]
    assert "warning" not in result.stderr


def test_two_classes_can_be_named(files):
    folder, _ = files
    result = mote_ftri(*options(folder, "refused", "answered", "other"), "--behavior", "refused-vs-other", "-k", 2)
    assert json.loads(result.stdout)["provenance"]["compared"] == {"class": ["refused"], "others": ["other"]}


def test_unequal_contexts_and_few_tokens_are_warned_about(files):
    folder, _ = files
    (folder / "other.gguf").write_bytes(imatrix_bytes(counts_of(3, 500), top_k=TOP_K, chunk_size=64))
    result = mote_ftri(*options(folder, "refused", "other"), "--behavior", "refused", "-k", 2)
    assert result.returncode == 0
    assert "contexts of different length (refused 512, other 64 tokens)" in result.stderr
    assert "very different numbers of tokens (refused 2000, other 500)" in result.stderr
    assert "other counts 500 tokens only" in result.stderr


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--statistic", "paper"], "needs counts per prompt, expected one of risk-difference, npmi, log-odds"),
        (["--report", "page"], "go without trace folders, --labels, --compare and --report"),
        (["--behavior", "quux"], "no class 'quux'; the classes are answered, refused"),
        (["--imatrix", "refused=again.gguf"], "expected CLASS=FILE, each class once"),
        (["--imatrix", "nonsense"], "--imatrix nonsense: expected CLASS=FILE"),
        (["-k", "16"], "-k 16: expected 1 to 15"),
    ],
)
def test_bad_options_get_one_sentence(files, extra, said):
    folder, _ = files
    result = mote_ftri(*options(folder, "refused", "answered"), "--behavior", "refused", "-k", 2, *extra)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and said in result.stderr


def test_nothing_to_analyse_is_said():
    result = mote_ftri("--behavior", "refused")
    assert result.returncode == 1 and "or --imatrix CLASS=FILE" in result.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"imatrix of 2024", "is not a GGUF file; write an older imatrix anew with llama-imatrix --in-file"),
        (gguf_bytes({"general.type": Value(STRING, "model")}, {}), "its general.type is 'model', expected 'imatrix'"),
        (gguf_bytes({"general.type": Value(STRING, "imatrix")}, {}), "holds no counts of experts"),
        (
            gguf_bytes(
                {"general.type": Value(STRING, "imatrix")},
                {"blk.3.ffn_down_exps.weight.counts": FileTensor("F32", (2, 1), np.ones(2, "<f4").tobytes())},
            ),
            "blk.3.ffn_gate_inp.weight.counts is missing",
        ),
        (imatrix_bytes({3: [-1.0, 3.0]}), "holds a count that is negative or no number"),
        (imatrix_bytes({3: [5, 5], 4: [5, 6]}).replace(HALVES, np.float32(5).tobytes()), "expected 2 a token"),
        (imatrix_bytes({3: [1, 2, 3]}, top_k=TOP_K), "counts layers [3], expected [3, 4]"),
    ],
)  # fmt: skip
def test_damaged_files_get_one_sentence(files, data, said):
    folder, _ = files
    (folder / "answered.gguf").write_bytes(data)
    result = mote_ftri(*options(folder, "refused", "answered"), "--behavior", "refused", "-k", 2)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and said in result.stderr, (
        result.stderr
    )


def test_a_missing_file_is_named(files):
    folder, _ = files
    result = mote_ftri(
        *options(folder, "refused"), "--imatrix", f"answered={folder / 'none.gguf'}", "--behavior", "refused"
    )
    assert f"{folder / 'none.gguf'}: no such file" in result.stderr
