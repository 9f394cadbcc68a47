"""The whole of mote-refine on the stand-in engine: the expert that its replies depend on is found, checked and written."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles import MOE_LAYERS, NUM_EXPERTS, VOCABULARY, FollowedModel
from replies import REFUSAL_EXPERT

from eval import evaluate
from eval.answers.journal import unseen
from eval.answers.live import LiveResponder
from eval.answers.plan import NamedEdit
from eval.options import EvalRequest
from eval.refine import refine as operation
from eval.refine.cli import lines
from eval.refine.options import RefineRequest
from eval.refine.page import PAGE
from eval.session import Session
from ftri.labels.think_formats import choose_format
from rewriter.errors import MoteError
from rewriter.expert_set import ExpertSet


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RefineRequest:
    layout = SimpleNamespace(moe_layers=MOE_LAYERS, num_experts=NUM_EXPERTS, has_bias=True)
    model = SimpleNamespace(
        name="double", model="double", repo_id=None, revision=None, config_sha256="0" * 64, layout=layout
    )

    def open_session(request: EvalRequest, say: object, lent: object = None) -> Session:
        told = choose_format(request.think_format, None)
        live = LiveResponder({"model": "double"}, lambda checkpoint: FollowedModel(), told)
        return Session("live", live, NamedEdit("none"), [], {"model": "double"}, model, live, think_format=told)  # type: ignore[arg-type]

    monkeypatch.setattr(operation, "open_session", open_session)
    prompts = tmp_path / "prompts.jsonl"
    places = ("Beijing", "Shanghai", "Paris", "London", "Rome")
    rows = [{"prompt": f"What happened {year} in {place}?"} for year in range(1980, 1992) for place in places]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    return RefineRequest(
        model="double",
        prompts=str(prompts),
        output=tmp_path / "refined.json",
        report=tmp_path / "report",
        semantics="drop",
        max_experts=3,
        kl_prompts=2,
        kl_tokens=8,
        kl_listed=VOCABULARY,
        controls=19,
        control_matching=("uniform",),
        null_searches=1,
        max_tokens=200,
    )


def run(request: RefineRequest) -> tuple[operation.Refined, list[str]]:
    said: list[str] = []
    return operation.refine(request, said.append, unseen), said


def test_the_expert_behind_the_refusals_is_found_checked_and_written(request_: RefineRequest) -> None:
    found, said = run(request_)
    first = found.results.path[0]
    assert (first.layer, first.expert) == REFUSAL_EXPERT
    assert found.results.chosen[0] == REFUSAL_EXPERT
    assert found.check is not None
    moved = found.check.primary_comparison().moved.rate
    assert moved.rate is not None and moved.rate > 0.5
    (null,) = found.check.controls
    assert null.p_value == 1 / 20
    written = ExpertSet.load(request_.output)
    assert written.model_pairs(MOE_LAYERS) == found.results.chosen
    assert written.behavior == "refused"
    assert written.provenance["prompts"] == "prompts.jsonl"
    entry = json.loads(written.experts[0].model_dump_json())
    assert entry["order"] == 1
    assert entry["moved_so_far"] == entry["moved_alone"] > 0.5
    low, high = entry["log_odds_interval"]
    assert low <= entry["log_odds_alone"] <= high < 0
    assert any("screening 48 experts" in line for line in said)
    assert any("measured on the first 16: " in line and "tokens/s" in line for line in said)
    # What was measured once is known before the first edit of the next search, here the null's.
    screens = [line for line in said if line.startswith("screening")]
    assert [line.endswith("tokens/s") for line in screens] == [False, True]
    page = (request_.folder / PAGE).read_text()
    assert "<script" not in page
    # Not the 20 of --screen-prompts, which are more than the search's prompts with a refusal.
    assert found.results.num_screen_prompts == 15 and "on 15 prompts whose response" in " ".join(page.split())
    text = lines(found.results.model_dump(), json.loads(found.check.model_dump_json()))
    assert text[1].split()[:4] == ["add", "2", "5", "1"]
    assert text[-1].startswith("the search's own null 1")


def test_responses_are_split_by_the_format_that_is_told(request_: RefineRequest) -> None:
    """By another format's marks what the model writes between `<think>` and `</think>` is no reasoning."""
    reasoned = replace(request_, target="reasoned", toward=("aligned",), controls=0, null_searches=0)
    with pytest.raises(MoteError, match="hold 0 REASONED and 15 ALIGNED"):
        run(replace(reasoned, think_format="mistral"))
    found, _ = run(replace(reasoned, think_format="think", report=request_.folder / "told"))
    assert found.results.ended


def test_its_own_null_stays_below(request_: RefineRequest) -> None:
    found, _ = run(request_)
    assert found.check is not None
    observed = found.check.primary_comparison().moved.rate.rate
    for null in found.results.nulls:
        assert null.moved_in_search < found.results.moved
        assert null.held_out_moved is None or null.held_out_moved < observed


def test_a_second_run_measures_nothing_again(request_: RefineRequest) -> None:
    first, _ = run(request_)
    size = (request_.folder / "journal.jsonl").stat().st_size
    again, said = run(request_)
    assert any("going on with" in line for line in said)
    assert (request_.folder / "journal.jsonl").stat().st_size == size
    # Of the search, not of the run: a page of a run that was stopped must not say that nothing was measured.
    assert again.results.num_edits == first.results.num_edits > 48
    assert again.results.path == first.results.path


def test_a_search_that_finds_nothing_leaves_no_other_search_s_set_and_check(
    request_: RefineRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stood beside a page that says that none was found."""
    few = replace(request_, controls=0, null_searches=0)
    run(few)
    made = [request_.output, *(request_.folder / name for name in ("report.html", "results.json", "mote-eval.md"))]
    assert all(path.is_file() for path in made)
    monkeypatch.setattr("eval.refine.growing.LEAST_GAIN", 2.0)  # more than any set moves
    found, _ = run(few)
    assert found.expert_set is None and "No set was found" in (request_.folder / PAGE).read_text()
    assert not any(path.exists() for path in made)


def test_candidates_of_a_file_are_all_that_is_tried(request_: RefineRequest, tmp_path: Path) -> None:
    ranked = tmp_path / "ranked.json"
    entries = [{"layer": 1, "expert": 3}, {"layer": 2, "expert": 5}, {"layer": 3, "expert": 9}]
    ranked.write_text(
        json.dumps({"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "refused", "experts": entries})
    )
    found, _ = run(replace(request_, candidates=f"{ranked}:2"))
    assert {(row.layer, row.expert) for row in found.results.screened} == {(1, 3), (2, 5)}


def test_candidates_that_the_model_lacks_are_one_sentence(request_: RefineRequest, tmp_path: Path) -> None:
    ranked = tmp_path / "ranked.json"
    entries = [{"layer": 1, "expert": 3}, {"layer": 2, "expert": 99}]
    ranked.write_text(
        json.dumps({"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "refused", "experts": entries})
    )
    with pytest.raises(MoteError, match=r"ranked.json: names expert 99 of layer 2, expected experts below 16"):
        run(replace(request_, candidates=str(ranked)))


@pytest.mark.parametrize("value", [{"chances": 1}, {"kl": 0.5}, [1], {"chances": ["x"], "kl": 0}])
def test_a_damaged_measurement_in_the_journal_is_one_sentence(request_: RefineRequest, value: object) -> None:
    first, _ = run(request_)
    assert first.results.num_edits
    path = request_.folder / "journal.jsonl"
    lines_of = path.read_text().splitlines()
    damaged = next(number for number, line in enumerate(lines_of) if '"chances"' in line)
    lines_of[damaged] = json.dumps(json.loads(lines_of[damaged]) | {"value": value})
    path.write_text("\n".join(lines_of) + "\n")
    with pytest.raises(MoteError, match="is damaged"):
        run(request_)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_experts": 0}, "--max-experts is 0, expected at least 1"),
        ({"budget_kl": -1.0}, "--budget-kl is -1, expected nats a token above 0"),
        ({"toward": ("refused",)}, "--toward names refused"),
        ({"least_rate": 1.0}, "--least-rate is 1, expected a share"),
        ({"target": "truncated"}, "hold 0 TRUNCATED"),
        ({"candidates": "nowhere.json:5"}, "nowhere.json"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    request_: RefineRequest, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(MoteError, match=sentence):
        run(replace(request_, **changes))  # type: ignore[arg-type]


def test_tuned_strengths_are_checked_and_written_as_bias_shifts(
    request_: RefineRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operation, "shift_widths", lambda model: dict.fromkeys(MOE_LAYERS, 1.5))
    for module in (operation, evaluate):
        monkeypatch.setattr(module, "is_routable", lambda *arguments: True)
    asked = replace(
        request_, semantics="reroute", tune_strength=True, tune_trials=8, controls=3, max_experts=1, null_searches=0
    )
    found, said = run(asked)
    assert any("tuning the strengths of" in line for line in said)
    results = found.results
    assert results.tuned is not None and results.tuned.best is not None
    assert len(results.tuned.trials) == 8
    assert REFUSAL_EXPERT in results.chosen
    written = ExpertSet.load(asked.output)
    shifts = written.bias_shifts(MOE_LAYERS)
    assert [(*pair, shift) for pair, shift in shifts.items()] == results.tuned.best.bias_shifts
    assert found.check is not None
    primary = found.check.arm(found.check.primary)
    assert primary.bias_shifts == results.tuned.best.bias_shifts
    assert "Strengths" in (asked.folder / PAGE).read_text()
    text = lines(results.model_dump(), json.loads(found.check.model_dump_json()))
    assert any(line.startswith("tuned in 8 trials: whole reroutes") for line in text)
