"""A whole evaluation on the stand-in engine: figures by hand, resumption after SIGKILL, and what is written."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import OPTIONS, PROMPTS, evaluate
from replies import REFUSAL_EXPERT, share

from eval.report.table import one_screen
from eval.results import Results
from rewriter.errors import InputError

HERE = Path(__file__).parent


def without_times(results):
    return results.model_dump(exclude={"created"})


def test_the_counted_change_is_the_stand_ins_rule(finished):
    _, results, _ = finished
    refused = [p.text for p in PROMPTS if "Beijing" in p.text or "Shanghai" in p.text]
    # doubles.reply hashes the rendered prompt.
    expected = sum(share(f"<user>{text}", "strength") < 0.7 for text in refused)
    moved = results.primary_comparison().moved
    assert (moved.rate.count, moved.rate.total) == (expected, len(refused))
    assert moved.clustered.num_clusters == 2
    assert results.primary_comparison().returned.rate.count == 0


def test_one_model_is_loaded_for_all_arms(finished):
    _, results, models = finished
    assert len(models) == 1
    assert models[0].closed is False
    assert [arm.name for arm in results.arms] == [
        "base",
        "variant",
        "variant-drop",
        "variant-drop-renorm",
        "base-again",
        "other-set",
    ]


def test_the_null_is_below_the_variant(finished):
    _, results, _ = finished
    assert [control.matching for control in results.controls] == ["uniform", "layer", "frequency"]
    for control in results.controls:
        assert len(control.null_values) == 19
        assert all(REFUSAL_EXPERT not in chosen for chosen in control.sets)
        assert control.p_value == 1 / 20
        assert (control.num_prompts_at_risk, control.num_other_prompts) == (20, 8)


def test_the_base_run_twice_does_not_flip(finished):
    _, results, _ = finished
    assert (results.repeat_flips.count, results.repeat_flips.total) == (0, 60)


def test_fidelity_covers_every_pair_of_semantics(finished):
    _, results, _ = finished
    (fidelity,) = results.fidelity
    assert fidelity.exact
    assert {(one.left, one.right) for one in fidelity.divergences} == {
        (left, right)
        for left in ("base", "reroute", "drop", "drop-renorm")
        for right in ("base", "reroute", "drop", "drop-renorm")
        if left != right
    }
    assert all(one.answer_tokens.estimate > 0 for one in fidelity.divergences)
    assert 0 < fidelity.touched.slot_share < fidelity.touched.token_share < 1


def test_other_variants_have_a_divergence_too(finished):
    output, results, _ = finished
    (other,) = results.divergences
    from_base = {one.right: one.answer_tokens.estimate for one in results.fidelity[0].divergences if one.left == "base"}
    assert other.arm == "other-set" and 0 < other.answer_tokens.estimate < from_base["reroute"]
    line = f"KL per token from the base, other variants: other-set {other.answer_tokens.estimate:.4f}"
    assert line in one_screen(results)
    assert "Divergence of the other variants" in (output / "report.html").read_text()


def test_the_sweep_shows_gain_and_both_costs(finished):
    _, results, _ = finished
    assert [point.num_experts for point in results.sweep] == [1, 2, 3]
    assert all(point.kl_per_token.estimate > 0 and point.others_changed.total == 8 for point in results.sweep)
    assert results.sweep[0].kl_per_token.estimate < results.sweep[2].kl_per_token.estimate


def test_lost_protection_is_visible(finished):
    output, results, _ = finished
    (group,) = results.safety[0].groups
    assert group.before.rate == 1.0
    assert group.after.rate < 0.7
    assert group.lost == group.before.count - group.after.count
    assert "harm set" not in (output / "mote-eval.md").read_text()
    assert "should be refused" in (output / "mote-safety.md").read_text()


def test_every_transcript_is_side_by_side(finished):
    output, results, _ = finished
    lines = [json.loads(line) for line in (output / "transcripts.jsonl").read_text().splitlines()]
    assert len(lines) == len(PROMPTS) + 12
    first = lines[0]
    assert first["messages"] == [{"role": "user", "content": PROMPTS[0].text}]
    assert set(first["answers"]) == {arm.name for arm in results.arms}
    assert all(answer["text"] for line in lines for answer in line["answers"].values())
    matrix = results.primary_comparison().matrix
    counted = sum(
        line["answers"]["base"]["label"] == "REFUSED" and line["answers"]["variant"]["label"] == "ALIGNED"
        for line in lines[:60]
    )
    assert counted == matrix.count("REFUSED", "ALIGNED")


def test_results_read_back_as_they_were(finished):
    output, results, _ = finished
    assert Results.load(output / "results.json") == results
    document = json.loads((output / "results.json").read_text())
    assert document["schema"] == "mote.results/1"


def test_a_file_of_another_schema_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": "mote.results/9"}')
    with pytest.raises(InputError, match="is not a result of mote.results/1"):
        Results.load(tmp_path / "results.json")


def test_the_table_fits_one_screen(finished):
    _, results, _ = finished
    lines = one_screen(results)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 140
    assert any("19 random, frequency" in line for line in lines)


def test_a_rerun_asks_nothing_and_gives_the_same(finished):
    output, results, _ = finished
    again, models = evaluate(output)
    assert models == []
    assert without_times(again) == without_times(results)


@pytest.mark.parametrize("kill_after", [1, 137, 700])
def test_killed_and_run_again_gives_the_same_results(finished, tmp_path, kill_after):
    _, results, _ = finished
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    killed = subprocess.run(
        [sys.executable, str(HERE / "fake_run.py"), str(tmp_path), str(kill_after)],
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "results.json").exists()
    again, models = evaluate(tmp_path)
    assert without_times(again) == without_times(results)
    # Nothing that was answered before the kill was asked again.
    total = sum(1 for line in (tmp_path / "journal.jsonl").open() if '"kind": "answer"' in line)
    assert models[0].num_generated == total - kill_after


def test_more_controls_in_the_same_folder_keep_what_is_there(finished, tmp_path):
    evaluate(tmp_path, options=replace(OPTIONS, controls=3, sweep_k=()))
    results, models = evaluate(tmp_path, options=replace(OPTIONS, controls=5, sweep_k=()))
    assert len(results.controls[0].null_values) == 5
    assert models[0].num_generated == 3 * 2 * 28
