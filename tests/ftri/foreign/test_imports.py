"""mote-ftri import: SGLang's dumps put together again, and saved answers, against what the dump was made of."""

import base64
import io
import json

import numpy as np
import pytest
from running import run_main
from tiny_models import described_tiny_r1

from ftri.cli.find import main
from ftri.traces.reader import TraceReader

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return described_tiny_r1(tmp_path_factory.mktemp("models") / "R1")


LAYERS, FIRST_MOE, EXPERTS, TOP_K = 4, 1, 16, 4


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def rows_of(token_ids, positions):
    """[T, layers, K] logical experts by rule; dense layers are empty."""
    token, position = np.array(token_ids), np.array(positions)
    layer, slot = np.arange(LAYERS)[:, None], np.arange(TOP_K)
    rows = (token[:, None, None] * 7 + position[:, None, None] * 3 + layer + 5 * slot) % EXPERTS
    rows[:, :FIRST_MOE] = -1
    return rows


def make_dump(requests, batches, table):
    """What SGLang writes of `requests` (prompt, completion) when `batches` (lists of (request, first, last)) were run."""
    to_physical = np.zeros((LAYERS, EXPERTS), int)
    for layer in range(LAYERS):
        for physical, logical in enumerate(table[layer]):
            to_physical[layer, logical] = physical
    records = []
    for number, (kind, parts) in enumerate(batches):
        token_ids, positions = [], []
        for request, first, last in parts:
            token_ids += sum(requests[request], [])[first:last]
            positions += range(first, last)
        logical = rows_of(token_ids, positions).transpose(1, 0, 2)
        physical = np.where(logical >= 0, to_physical[np.arange(LAYERS)[:, None, None], logical], -1)
        slots = np.full((LAYERS, len(token_ids), 8), -1, np.int32)
        slots[:, :, :TOP_K] = physical
        records.append(
            {
                "forward_pass_id": number,
                "rank": 0,
                "input_ids": torch.tensor(token_ids),
                "positions": torch.tensor(positions),
                "extend_seq_lens": [last - first for _, first, last in parts] if kind == "extend" else None,
                "topk_ids_of_layer": torch.tensor(slots),
            }
        )
    return {"records": records[::-1], "last_physical_to_logical_map": torch.tensor(table)}


REQUESTS = [([5, 6, 7, 8, 9], [70, 71, 72]), ([5, 6, 30], [73, 70]), ([5, 40, 41, 42, 43, 44, 45], [70])]
BATCHES = [
    ("extend", [(0, 0, 5), (1, 0, 3)]),
    ("decode", [(0, 5, 6), (1, 3, 4)]),
    # A prompt in two chunks; meanwhile nobody decodes.
    ("extend", [(2, 0, 4)]),
    ("extend", [(2, 4, 7)]),
    ("decode", [(0, 6, 7), (1, 4, 5), (2, 7, 8)]),
    ("decode", [(0, 7, 8)]),
]


@pytest.fixture
def dump(tmp_path):
    generator = np.random.default_rng(0)
    table = np.stack([generator.permutation(EXPERTS) for _ in range(LAYERS)])
    path = tmp_path / "expert_distribution_recorder_1_0.pt"
    torch.save(make_dump(REQUESTS, BATCHES, table), path)
    return path


def bring(*words):
    return run_main(main, "mote-ftri", "import", *words)


def test_a_dump_of_sglang_becomes_its_requests(model, dump, tmp_path):
    result = bring(dump, "--model", model, "-o", tmp_path / "t", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["responses"] == len(REQUESTS)
    assert "has no request ids, texts or ends" in result.stderr
    found = {tuple(record.prompt_token_ids): record for record in TraceReader(tmp_path / "t")}
    for prompt, completion in REQUESTS:
        record = found[tuple(prompt)]
        assert record.completion_token_ids == completion
        token_ids = [*prompt, *completion][:-1]
        expected = np.sort(rows_of(token_ids, range(len(token_ids)))[:, FIRST_MOE:], axis=2)
        np.testing.assert_array_equal(record.experts, expected)
        assert record.finish_reason == "unknown" and record.prompt


def test_a_request_that_begins_in_the_prefix_cache_is_left_out_and_said(model, tmp_path):
    table = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    batches = [("extend", [(0, 0, 5)]), ("extend", [(1, 2, 3)]), ("decode", [(0, 5, 6)])]
    path = tmp_path / "d.pt"
    torch.save(make_dump(REQUESTS, batches, table), path)
    result = bring(path, "--model", model, "-o", tmp_path / "t")
    assert result.returncode == 0 and "1 requests begin in the prefix cache and are left out" in result.stderr
    assert len(TraceReader(tmp_path / "t")) == 1


def test_requests_of_the_same_tokens_are_two(model, tmp_path):
    """As samples of one prompt are."""
    table = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    batches = [
        ("extend", [(0, 0, 5), (0, 0, 5)]),
        ("decode", [(0, 5, 6), (0, 5, 6)]),
        ("decode", [(0, 6, 7), (0, 6, 7)]),
    ]
    path = tmp_path / "d.pt"
    torch.save(make_dump(REQUESTS, batches, table), path)
    result = bring(path, "--model", model, "-o", tmp_path / "t")
    assert result.returncode == 0, result.stderr
    assert [len(record.completion_token_ids) for record in TraceReader(tmp_path / "t")] == [2, 2]


def test_saved_answers_of_both_servers_become_the_same_traces(model, tmp_path):
    lines: dict[str, list[str]] = {"vllm": [], "sglang": []}
    for number, (prompt, completion) in enumerate(REQUESTS):
        token_ids = [*prompt, *completion][:-1]
        rows = rows_of(token_ids, range(len(token_ids)))
        rows[:, :FIRST_MOE] = 0
        choice = {
            "text": "a\u2028c\ufffd",
            "token_ids": completion,
            "finish_reason": "stop",
            "prompt_token_ids": prompt,
            "routed_experts": base64.b64encode(npy_bytes(rows.astype(np.uint8))).decode(),
        }
        meta = {
            "finish_reason": {"type": "stop"},
            "routed_experts": base64.b64encode(rows.astype("<i4").tobytes()).decode(),
        }
        lines["vllm"].append(json.dumps({"prompt_id": f"q{number}", "choices": [choice]}, ensure_ascii=False))
        answer = {"prompt_id": f"q{number}", "input_ids": prompt, "text": "a\u2028c\ud800", "output_ids": completion}
        lines["sglang"].append(json.dumps(answer | {"meta_info": meta}))
    digests = set()
    for runtime, entries in lines.items():
        (tmp_path / f"{runtime}.jsonl").write_text("\n".join(entries))
        result = bring(tmp_path / f"{runtime}.jsonl", "--model", model, "-o", tmp_path / runtime)
        assert result.returncode == 0, result.stderr
        digests.add(TraceReader(tmp_path / runtime).content_digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "expected SGLang's dump"),
        ("a.pt", b"nonsense", "a.pt: is no dump of SGLang's recorder"),
        ("a.jsonl", b"{}", "line 1: has no prompt_token_ids"),
        ("a.jsonl", b'{"prompt_token_ids": [-1], "token_ids": [2]}', "line 1: has no prompt_token_ids"),
        ("a.jsonl", b'{"prompt_token_ids": [1], "sample": "x"}', "has the sample x, expected a number"),
        ("a.jsonl", b"[1]", "line 1: is no object"),
        ("a.jsonl", b"{", "line 1: is not JSON"),
        ("a.jsonl", b'{"prompt_token_ids": [1], "token_ids": [2]}', "returns no routed_experts"),
        ("a.jsonl", b"", "holds no whole response"),
        ("a.npy", b"nonsense", "a.npy: is no .npy array"),
        ("a.npy", npy_bytes(np.zeros((3, 4, 4))), "holds float64 [3, 4, 4], expected integers"),
        ("a.npy", npy_bytes(np.zeros((3, 4), int)), "holds int64 [3, 4], expected integers [tokens, layers"),
        ("a.npy", npy_bytes(np.zeros((3, 4, 4), int)), "more than once in one token and layer"),
    ],
)
def test_what_is_no_recording_is_one_sentence(model, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    result = bring(tmp_path / name, "--model", model, "-o", tmp_path / "t")
    assert result.returncode == 1 and sentence in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "t").exists()


def array_files(folder, requests):
    """vLLM's routed_experts of each request as a bare .npy, dense layers zero."""
    paths = []
    for number, (prompt, completion) in enumerate(requests):
        token_ids = [*prompt, *completion][:-1]
        rows = rows_of(token_ids, range(len(token_ids)))
        rows[:, :FIRST_MOE] = 0
        paths.append(folder / f"q{number}.npy")
        np.save(paths[-1], rows.astype(np.uint8))
    return paths


def test_bare_arrays_become_traces_that_say_what_they_lack(model, tmp_path):
    result = bring(*array_files(tmp_path, REQUESTS), "--model", model, "-o", tmp_path / "t")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("arrays hold no token ids, texts or the prompt's end") == 1
    records = {record.prompt_id: record for record in TraceReader(tmp_path / "t")}
    for number, (prompt, completion) in enumerate(REQUESTS):
        token_ids = [*prompt, *completion][:-1]
        expected = np.sort(rows_of(token_ids, range(len(token_ids)))[:, FIRST_MOE:], axis=2)
        np.testing.assert_array_equal(records[f"q{number}"].experts, expected)


def test_arrays_are_ranked_by_given_labels_and_by_nothing_else(model, tmp_path):
    requests = [([5, 6 + number, 7], [70 + number]) for number in range(8)]
    assert bring(*array_files(tmp_path, requests), "--model", model, "-o", tmp_path / "t").returncode == 0
    find = [tmp_path / "t", "--behavior", "yes", "-k", 2, "--permutations", 99, "--bootstraps", 10]
    unlabelled = run_main(main, "mote-ftri", *find)
    assert unlabelled.returncode == 1 and "give --labels FILE with prompt_id" in unlabelled.stderr
    labels = tmp_path / "labels.csv"
    labels.write_text("prompt_id,label\n" + "".join(f"q{n},{'yes' if n % 2 else 'no'}\n" for n in range(8)))
    there = run_main(main, "mote-ftri", *find, "--labels", labels, "--positions", "last")
    assert there.returncode == 1 and "without token ids" in there.stderr and "expected prompt or all" in there.stderr
    found = run_main(main, "mote-ftri", *find, "--labels", labels)
    assert found.returncode == 0, found.stderr
    assert "the traces hold no token ids" in found.stderr and "token identity explains" not in found.stderr
    assert len(json.loads(found.stdout)["experts"]) == 2


def test_arrays_and_responses_with_tokens_do_not_mix(model, dump, tmp_path):
    result = bring(dump, *array_files(tmp_path, REQUESTS), "--model", model, "-o", tmp_path / "t")
    assert result.returncode == 1 and "import them into two folders" in result.stderr
    assert not (tmp_path / "t").exists()
