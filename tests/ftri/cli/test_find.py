"""mote-ftri as a user runs it: the expert set it writes, what it says, merging, and one sentence for bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import synthetic
from running import run_main

from ftri.analysis.find import find
from ftri.analysis.findings import FindOptions
from ftri.cli.find import main
from ftri.traces.merge import merge_traces
from ftri.traces.reader import TraceReader
from ftri.traces.writer import write_traces
from rewriter.expert_set import ExpertEntry, ExpertSet

QUICK = ("--permutations", "99", "--bootstraps", "20")


def mote_ftri(*arguments):
    return run_main(main, "mote-ftri", *arguments)


def sentence_of(result):
    """The one error sentence of a failed run, which printed nothing else."""
    assert result.returncode == 1 and result.stdout == "", (result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def plan():
    return synthetic.Plan(times=tuple(str(year) for year in range(1990, 2000)))


@pytest.fixture(scope="module")
def traces(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "traces"
    write_traces(folder, synthetic.manifest(plan), synthetic.records(plan))
    return folder


@pytest.fixture(scope="module")
def expert_set(traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "refused.json"
    result = mote_ftri(traces, "--behavior", "refused", "-k", 4, "-o", path, *QUICK)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and "in top k" in result.stderr
    return path


def test_the_expert_set_has_the_planted_experts_and_all_numbers(traces, expert_set, plan):
    found = ExpertSet.load(expert_set)
    manifest = TraceReader(traces).manifest
    assert (found.model, found.layer_index, found.behavior) == ("made-up/model", "model", "REFUSED")
    expected = {(manifest["moe_layers"][layer], expert) for layer, expert in synthetic.BEHAVIOR_EXPERTS}
    assert {(entry.layer, entry.expert) for entry in found.experts} == expected
    first = found.experts[0].model_dump()
    assert first["resonance"] == first["score"] == pytest.approx(first["mean_class"] - first["mean_others"])
    assert first["interval"][0] < first["score"] < first["interval"][1]
    assert 0 < first["p_max_t"] <= 0.05 and 0 < first["q_benjamini_hochberg"] < 0.01 and first["stability"] > 0.9
    assert first["effect"] > 1


def test_the_expert_set_says_everything_needed_to_repeat_it(traces, expert_set):
    provenance = ExpertSet.load(expert_set).provenance
    assert provenance["options"]["statistic"] == "paper" and provenance["options"]["seed"] == 0
    assert sum(provenance["num_responses"].values()) == 80 == len(provenance["prompt_sha256"])
    assert (
        provenance["leave_one_out"]["place"]["num_folds"] == 8
        and provenance["leave_one_out"]["time"]["num_folds"] == 10
    )
    assert provenance["traces"][0]["index_sha256"] and provenance["config_sha256"] == "c" * 64
    assert str(traces) not in expert_set.read_text(), "where the traces lay is nobody's business"


def test_the_same_command_gives_the_same_file(traces, expert_set, tmp_path):
    mote_ftri("find", traces, "--behavior", "REFUSED", "-k", 4, "-o", tmp_path / "again.json", *QUICK)
    again, first = (json.loads(path.read_text()) for path in (tmp_path / "again.json", expert_set))
    first["provenance"]["options"]["behavior"] = "REFUSED"
    assert again == first


def test_without_an_output_the_set_goes_to_stdout(traces):
    result = mote_ftri(traces, "--behavior", "reasoned-vs-aligned", "-k", 1, "--positions", "last", *QUICK)
    assert json.loads(result.stdout)["behavior"] == "REASONED-vs-ALIGNED"
    assert "left out: REFUSED" in result.stderr
    assert "warning: 1 of the top 1 experts are not distinguishable from chance" in result.stderr


def test_thinking_language_classes(tmp_path, plan):
    records = list(synthetic.records(plan))
    for number, record in enumerate(records):
        record.text = ("<think>I add.</think>15", "<think>我需要计算。</think>15", "<think></think>15")[number % 3]
    write_traces(tmp_path / "t", synthetic.manifest(plan), records)
    result = mote_ftri(tmp_path / "t", "--behavior", "thinking:english", "-k", 2, *QUICK)
    found = json.loads(result.stdout)
    assert found["behavior"] == "english" and found["provenance"]["num_responses"] == {"chinese": 27, "english": 27}
    assert found["provenance"]["num_left_out"] == {"none": 26}


def test_labels_by_a_rule_of_the_users(traces, tmp_path):
    rows = [
        {"prompt_id": record.prompt_id, "label": "early" if record.factors["time"] < "1995" else "late"}
        for record in TraceReader(traces).metadata()
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-5]), encoding="utf-8")
    result = mote_ftri(traces, "--behavior", "early", "--labels", path, "-k", 3, *QUICK)
    found = json.loads(result.stdout)
    assert found["provenance"]["num_responses"] == {"early": 40, "late": 35}
    assert found["provenance"]["num_left_out"] == {"UNLABELLED": 5} and found["provenance"]["labels_sha256"]
    assert "token identity explains the ranking" in result.stderr, "early and late differ by the time's token alone"


def test_several_folders_and_their_merger_give_the_same_ranking(traces, plan, tmp_path):
    records = list(synthetic.records(plan))
    write_traces(tmp_path / "a", synthetic.manifest(plan), records[:50])
    write_traces(tmp_path / "b", synthetic.manifest(plan), records[50:])
    merged = mote_ftri("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "ab", "--json")
    assert json.loads(merged.stdout) == {"output": str(tmp_path / "ab"), "num_responses": 80}
    assert merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "ab") == 80, "merging again adds nothing"
    results = [
        json.loads(mote_ftri(*folders, "--behavior", "refused", *QUICK).stdout)["experts"]
        for folders in ([tmp_path / "ab"], [tmp_path / "a", tmp_path / "b"], [traces])
    ]
    assert results[0] == results[1] == results[2]


def test_a_response_that_two_folders_hold_counts_once(traces, plan, tmp_path):
    """All of them twice: each p-value stays what it was."""
    records = list(synthetic.records(plan))
    write_traces(tmp_path / "again", synthetic.manifest(plan), reversed(records))
    once = mote_ftri(traces, "--behavior", "refused", *QUICK)
    twice = mote_ftri(traces, tmp_path / "again", "--behavior", "refused", *QUICK)
    assert json.loads(twice.stdout)["experts"] == json.loads(once.stdout)["experts"]
    assert "80 responses stand in more than one folder and are counted once" in twice.stderr
    records[3].text += "?"
    write_traces(tmp_path / "other", synthetic.manifest(plan), records[3:4])
    sentence = sentence_of(mote_ftri(traces, tmp_path / "other", "--behavior", "refused"))
    assert "hold different responses as sample 0 of prompt" in sentence


def test_zero_computation_experts_are_selected_but_not_ranked(plan, tmp_path):
    """256 experts and 64 choices behind them: ids above 255 neither wrap nor count."""
    plan = synthetic.Plan(num_experts=256, times=("1990", "1991", "1992"), places=("in Paris", "in Beijing"))
    records = list(synthetic.records(plan))
    for record in records:
        record.experts = record.experts.astype(np.uint16)
        record.experts[:, :, -1] = 256 + np.arange(len(record.experts))[:, None] % 64
    manifest = synthetic.manifest(plan, num_other_choices=64)
    write_traces(tmp_path / "t", manifest, records)
    groups = {record.prompt_id: "a" if number % 2 else "b" for number, record in enumerate(records)}
    rows = [{"prompt_id": prompt_id, "label": label} for prompt_id, label in groups.items()]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = FindOptions("a", 3, labels=str(tmp_path / "labels.jsonl"), num_permutations=99, num_bootstraps=10)
    findings = find([tmp_path / "t"], options)
    means = np.zeros((2, 6, 256))
    for record in records:
        side = 0 if groups[record.prompt_id] == "a" else 1
        for token in record.experts[: len(record.prompt_token_ids), :, :-1]:
            for layer, experts in enumerate(token):
                means[side, layer, experts] += 1 / list(groups.values()).count("ab"[side])
    np.testing.assert_allclose(findings.means, means, atol=1e-9)


def test_token_ids_far_out_take_no_table_up_to_them(plan, tmp_path):
    records = list(synthetic.records(plan))
    for record in records:
        record.prompt_token_ids = [token if token != synthetic.MARK else 2**31 - 1 for token in record.prompt_token_ids]
    write_traces(tmp_path / "far", synthetic.manifest(plan), records)
    far = find([tmp_path / "far"], FindOptions("refused", 4, num_permutations=99, num_bootstraps=10))
    assert far.study.num_tokens.shape[1] < 2**20 and 2**31 - 1 in far.study.token_ids()
    lifts = [lift.token_id for number in range(4) for lift in far.study.lifts(number)]
    assert all(token < 2000 or token == 2**31 - 1 for token in lifts)


def test_comparing_with_another_set_of_the_model(traces, expert_set):
    result = mote_ftri(traces, "--behavior", "refused", "-k", 4, "--compare", expert_set, *QUICK)
    assert json.loads(result.stdout)["provenance"]["compared_with"]["jaccard"] == 1.0
    assert "4 experts shared with refused.json (Jaccard 1.00)" in result.stderr


class TestBadInput:
    """One clear sentence each."""

    def test_no_trace_folder(self, tmp_path):
        assert "not a trace folder" in sentence_of(mote_ftri(tmp_path, "--behavior", "refused"))

    def test_empty_traces(self, plan, tmp_path):
        write_traces(tmp_path / "t", synthetic.manifest(plan), [])
        assert "the traces hold no response" in sentence_of(mote_ftri(tmp_path / "t", "--behavior", "refused"))

    def test_one_class_only(self, plan, tmp_path):
        refused = [record for record in synthetic.records(plan) if "sorry" in record.text]
        write_traces(tmp_path / "t", synthetic.manifest(plan), refused)
        sentence = sentence_of(mote_ftri(tmp_path / "t", "--behavior", "refused"))
        assert "0 responses are ALIGNED or REASONED, expected at least 2 on each side of the comparison" in sentence
        assert f"the traces hold REFUSED {len(refused)}; record other --prompts or more --samples" in sentence

    def test_no_response_of_the_class(self, traces):
        sentence = sentence_of(mote_ftri(traces, "--behavior", "unparsed"))
        assert "0 responses are UNPARSED" in sentence

    def test_truncated_chunk(self, plan, tmp_path):
        write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
        chunk = tmp_path / "t" / "chunk-00000.safetensors"
        chunk.write_bytes(chunk.read_bytes()[:-100])
        sentence = sentence_of(mote_ftri(tmp_path / "t", "--behavior", "refused"))
        assert "chunk-00000.safetensors" in sentence and "truncated" in sentence

    def test_missing_chunk(self, plan, tmp_path):
        write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
        (tmp_path / "t" / "chunk-00000.safetensors").unlink()
        assert "is missing, though" in sentence_of(mote_ftri(tmp_path / "t", "--behavior", "refused"))

    def test_expert_set_of_another_model(self, traces, expert_set, tmp_path):
        other = ExpertSet.load(expert_set)
        other.provenance["config_sha256"] = "e" * 64
        other.model = "another/model"
        other.save(tmp_path / "other.json")
        sentence = sentence_of(mote_ftri(traces, "--behavior", "refused", "--compare", tmp_path / "other.json"))
        assert (
            "other.json: is of the model another/model with config SHA-256 eeeeeeeeeeee..., expected cccccccccccc..."
            in sentence
        )

    def test_expert_set_without_a_hash_or_with_experts_that_are_not_there(self, traces, tmp_path):
        other = ExpertSet(model="another/model", layer_index="model", behavior="b", experts=[])
        other.save(tmp_path / "other.json")
        sentence = sentence_of(mote_ftri(traces, "--behavior", "refused", "--compare", tmp_path / "other.json"))
        assert "is of the model another/model, expected made-up/model" in sentence
        other = ExpertSet(layer_index="model", behavior="b", experts=[ExpertEntry(layer=3, expert=99)])
        other.save(tmp_path / "high.json")
        sentence = sentence_of(mote_ftri(traces, "--behavior", "refused", "--compare", tmp_path / "high.json"))
        assert "names expert 99, expected experts below 32" in sentence

    def test_label_for_an_unknown_prompt(self, traces, tmp_path):
        (tmp_path / "labels.csv").write_text("prompt_id,label\n1990/in Paris,a\nnowhere,b\n")
        sentence = sentence_of(mote_ftri(traces, "--behavior", "a", "--labels", tmp_path / "labels.csv"))
        assert "labels.csv: labels 1 responses that the traces do not hold, the first is prompt 'nowhere'" in sentence

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("--behavior", "happy"), "no class 'happy'"),
            (("--behavior", "refused", "--statistic", "mean"), "--statistic mean: expected one of paper, class-mean"),
            (
                ("--behavior", "refused", "--positions", "first"),
                "--positions first: expected one of prompt, completion",
            ),
            (("--behavior", "refused", "-k", "192"), "-k 192: expected 1 to 191"),
            (("--behavior", "refused", "--labels", "nowhere.csv"), "nowhere.csv: cannot be read"),
        ],
    )
    def test_options(self, traces, arguments, sentence):
        assert sentence in sentence_of(mote_ftri(traces, *arguments))

    def test_no_completion_tokens(self, tmp_path):
        plan = synthetic.Plan(times=("1990", "1991"), completion_tokens=1)
        write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
        sentence = sentence_of(mote_ftri(tmp_path / "t", "--behavior", "refused", "--positions", "completion"))
        assert "no response has a token there" in sentence

    def test_folders_of_different_models(self, traces, plan, tmp_path):
        write_traces(tmp_path / "t", synthetic.manifest(plan, config_sha256="f" * 64), synthetic.records(plan))
        sentence = sentence_of(mote_ftri(traces, tmp_path / "t", "--behavior", "refused"))
        assert f'has config_sha256 "{"f" * 64}", expected "{"c" * 64}"' in sentence
        assert "config_sha256" in sentence_of(mote_ftri("merge", traces, tmp_path / "t", "-o", tmp_path / "m"))


def test_few_prompts_are_said_loudly(tmp_path):
    plan = synthetic.Plan(times=("1990", "1991"))
    write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
    result = mote_ftri(tmp_path / "t", "--behavior", "refused", *QUICK)
    assert "warning: too few prompts: REFUSED has" in result.stderr and "at least 20 are advised" in result.stderr
    assert any("too few prompts" in warning for warning in json.loads(result.stdout)["provenance"]["warnings"])


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = "numpy", "scipy", "sklearn", "matplotlib", "pydantic", "jinja2", "vllm", "torch"
    code = (
        f"import sys; import ftri.cli.find, ftri.cli.label; print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert "--statistic" in mote_ftri("--help").stdout and "merge" in mote_ftri("--help").stdout


def test_in_memory_ranking_equals_the_one_from_folders(traces):
    """What mote-eval uses to find experts on one half of the prompts."""
    import numpy as np

    from ftri.analysis.maps import count_selections
    from ftri.analysis.resonance import resonance_map, top_experts

    records = list(TraceReader(traces))
    maps = [count_selections(record.experts[: len(record.prompt_token_ids)], 32).reshape(6, 32) for record in records]
    refused = np.array(["sorry" in record.text for record in records])
    findings = find([traces], FindOptions("refused", k=6, num_permutations=99, num_bootstraps=10))
    scores = resonance_map(np.stack(maps), refused)
    assert (scores == findings.scores).all()
    rows = [findings.maps.row_of(found.layer) for found in findings.top]
    assert top_experts(scores, 6) == list(zip(rows, [found.expert for found in findings.top], strict=True))
