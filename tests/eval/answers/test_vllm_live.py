"""One evaluation on a real vLLM engine with a random tiny R1: live edits, recorded routing and a variant's folder agree."""

import json

import pytest
from tiny_models import build_tiny_r1

from eval.answers.journal import unseen
from eval.evaluate import evaluate
from eval.options import EvalRequest, RunOptions
from eval.results import Results

pytestmark = pytest.mark.vllm

EXPERTS = [(layer, expert) for layer in (1, 2, 3) for expert in (3, 5, 9, 14)]
OPTIONS = RunOptions(
    max_tokens=24,
    controls=2,
    control_matching=("frequency",),
    control_prompts=6,
    control_others=6,
    sweep_k=(1, 12),
    kl_tokens=8,
    kl_listed=-1,
    neutral_prompts=4,
    label_cut=True,
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.patches import EditOptions
    from rewriter.edit.plan import make_plan
    from rewriter.expert_set import ExpertSet
    from rewriter.variant.write import write_variant

    folder = tmp_path_factory.mktemp("live")
    model = build_tiny_r1(folder / "base", moe_intermediate_size=512)
    source = folder / "set.json"
    experts = [{"layer": layer, "expert": expert} for layer, expert in EXPERTS]
    document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "ALIGNED", "experts": experts}
    source.write_text(json.dumps(document))
    plan = make_plan(Checkpoint.open(model), ExpertSet.load(source), None, EditOptions(semantics="reroute"))
    write_variant(plan, model, folder / "rewritten")
    loads = []
    request = EvalRequest(
        prompts="what-happened:listed",
        output=folder / "out",
        options=OPTIONS,
        model=str(model),
        suppress=str(source),
        variants=(str(folder / "rewritten"),),
        limit=12,
        engine_arguments={"max_model_len": 256, "max_num_seqs": 16},
    )
    results = evaluate(request, loads.append, unseen)
    return folder, request, results


def transcripts(folder):
    return [json.loads(line) for line in (folder / "out" / "transcripts.jsonl").read_text().splitlines()]


def test_the_live_reroute_says_what_the_rewritten_checkpoint_says(evaluated):
    folder, _, _ = evaluated
    lines = transcripts(folder)
    assert len(lines) == 12
    assert all(line["answers"]["variant"]["text"] == line["answers"]["rewritten"]["text"] for line in lines)
    assert any(line["answers"]["variant"]["text"] != line["answers"]["base"]["text"] for line in lines)


def test_the_base_is_back_after_every_edit(evaluated):
    folder, _, _ = evaluated
    assert all(line["answers"]["base"]["text"] == line["answers"]["base-again"]["text"] for line in transcripts(folder))


def test_divergence_and_routing_are_measured(evaluated):
    _, _, results = evaluated
    assert not results.missing
    (fidelity,) = results.fidelity
    assert fidelity.exact
    from_base = {one.right: one.answer_tokens.estimate for one in fidelity.divergences if one.left == "base"}
    assert set(from_base) == {"reroute", "drop", "drop-renorm"}
    assert all(value > 0 for value in from_base.values())
    # 12 of 48 experts; were all selected alike, they would hold a quarter of the slots.
    assert 0.05 < fidelity.touched.slot_share < 0.6
    # Where an expert is only dropped, the first edited layer still selects as the base does.
    assert fidelity.slots_changed["reroute"] > fidelity.slots_changed["drop"] * 0.5
    (control,) = results.controls
    assert len(control.null_values) == 2
    assert control.frequency_gap is not None


def test_a_rewritten_checkpoint_is_as_far_from_the_base_as_its_live_edit(evaluated):
    _, _, results = evaluated
    (rewritten,) = results.divergences
    live = next(one for one in results.fidelity[0].divergences if (one.left, one.right) == ("base", "reroute"))
    assert rewritten.arm == "rewritten"
    assert rewritten.answer_tokens.estimate == pytest.approx(live.answer_tokens.estimate, rel=1e-3)


def test_a_rerun_loads_no_engine(evaluated):
    folder, request, results = evaluated
    said = []
    again = evaluate(request, said.append, unseen)
    assert again.model_dump(exclude={"created"}) == results.model_dump(exclude={"created"})
    assert Results.load(folder / "out" / "results.json") == again
