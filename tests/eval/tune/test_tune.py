"""The whole of mote-tune on the stand-in engine: every step's file, one engine, and going on after a stop at any place."""

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import NUM_EXPERTS
from engine_double import EngineDouble
from replies import REFUSAL_EXPERT
from safetensors.numpy import save_file
from tiny_models import described_tiny_r1

from eval.answers.journal import unseen
from eval.errors import IncompleteError
from eval.results import Results
from eval.tune.cli import main
from eval.tune.options import TuneRequest
from eval.tune.plan import as_written
from eval.tune.steps import Steps
from eval.tune.tune import OneEngine, Tuned, plan_tuning, tune
from ftri.traces.reader import TraceReader
from rewriter.errors import MoteError
from rewriter.expert_set import ExpertSet

EXAMPLES = Path(__file__).parents[3] / "examples"
PLACES = ("Beijing", "Shanghai", "Paris", "London", "Rome")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with its router biases alone: all that a reroute rewrites."""
    folder = described_tiny_r1(tmp_path_factory.mktemp("tune") / "model")
    biases = {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias": np.zeros(NUM_EXPERTS, np.float32)
        for layer in (1, 2, 3)
    }
    save_file(biases, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tune_request(model: Path, folder: Path) -> TuneRequest:
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": f"What happened {year} in {place}?"} for year in range(1980, 1990) for place in PLACES]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    return TuneRequest(
        model=str(model),
        prompts=str(prompts),
        output=folder / "out",
        k=4,
        max_experts=2,
        screen_prompts=10,
        grow_prompts=10,
        pool=4,
        kl_prompts=2,
        kl_tokens=8,
        kl_listed=32,
        controls=5,
        control_matching=("uniform",),
        null_searches=1,
        max_tokens=200,
    )


@pytest.fixture
def request_(model: Path, tmp_path: Path) -> TuneRequest:
    return tune_request(model, tmp_path)


def run(request: TuneRequest, engine: EngineDouble) -> tuple[Tuned, list[str]]:
    said: list[str] = []
    plan = plan_tuning(request, said.append)
    return tune(request, plan, said.append, unseen, lambda: engine), said  # type: ignore[arg-type, return-value]


@dataclass(frozen=True)
class Finished:
    """A run that nothing stopped."""

    request: TuneRequest
    tuned: Tuned
    said: list[str]
    num_generated: int


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    request, engine = tune_request(model, tmp_path_factory.mktemp("finished")), EngineDouble(model)
    return Finished(request, *run(request, engine), engine.num_generated)


def test_one_command_writes_what_the_single_commands_write(finished: Finished) -> None:
    out = finished.request.output
    assert len(TraceReader(out / "traces")) == 50
    labels = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    assert {line["behavior"] for line in labels} == {"REFUSED", "ALIGNED", "REASONED"}
    # Neither list nor search may see the prompts that check them.
    found, refined = ExpertSet.load(out / "found.json"), ExpertSet.load(out / "refined.json")
    finding = set(refined.provenance["prompt_sha256"])
    assert set(found.provenance["prompt_sha256"]) <= finding and len(labels) <= 25 == len(finding)
    assert len(found.experts) == 4
    assert refined.model_pairs((1, 2, 3))[0] == REFUSAL_EXPERT
    results = Results.load(out / "refine" / "results.json")
    assert results == finished.tuned.check
    assert [arm.name for arm in results.arms if arm.kind == "other"] == ["found"]
    assert (out / "find" / "report.html").is_file() and (out / "refine" / "refine.html").is_file()
    block = json.loads((out / "variant" / "config.json").read_text())["mote"]
    assert block["semantics"] == "reroute"
    card = (out / "variant" / "README.md").read_text()
    assert "Measured by mote-eval" in card
    # The recorded answers of the base are not asked for again.
    assert any("holds 50 of the base's 50 answers" in line for line in finished.said)


def test_a_second_run_does_nothing_again(finished: Finished, model: Path) -> None:
    idle = EngineDouble(model)
    again, said = run(finished.request, idle)
    assert (idle.num_generated, idle.num_scored) == (0, 0)
    assert again == finished.tuned
    assert sum("done before" in line for line in said) == 5


def test_a_set_that_was_deleted_is_made_again_from_the_journal(finished: Finished, model: Path) -> None:
    """It used to say that the search had found none."""
    wanted = ExpertSet.load(finished.request.refined)
    finished.request.refined.unlink()
    idle = EngineDouble(model)
    again, said = run(finished.request, idle)
    assert idle.num_generated == 0 and "refine and check: begins" in said
    assert ExpertSet.load(finished.request.refined).experts == wanted.experts
    assert again.variant == finished.tuned.variant


def test_the_place_of_a_model_as_it_is_typed_decides_no_step(
    finished: Finished, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    relative = replace(finished.request, model=model.name, output=Path(os.path.relpath(finished.request.output)))
    idle = EngineDouble(model)
    _, said = run(relative, idle)
    assert (idle.num_generated, idle.num_scored) == (0, 0)
    assert sum("done before" in line for line in said) == 5
    (header,) = [json.loads(line) for line in (relative.output / "refine" / "journal.jsonl").open()][:1]
    assert header["subject"]["model"] == ExpertSet.load(relative.refined).model == model.name


def test_another_version_of_this_package_does_every_step_again(tmp_path: Path) -> None:
    done: list[str] = []
    for version in ("1", "1", "2"):
        steps = Steps(tmp_path, version, lambda message: None)
        steps.do("record", {"seed": 0}, [], lambda version=version: done.append(version))
    assert done == ["1", "2"]
    assert json.loads((tmp_path / "tune.json").read_text())["tool_version"] == "2"


def test_a_step_stopped_with_other_inputs_is_done_again_with_the_former_ones(tmp_path: Path) -> None:
    """Its files may be of the other inputs; they were taken for those of the former, and got their check on their card."""
    made = tmp_path / "refined.json"

    def stopped() -> None:
        made.write_text("of B")
        raise KeyboardInterrupt

    def do(inputs: str, work: Callable[[], object]) -> None:
        Steps(tmp_path, "1", lambda message: None).do("refine", inputs, [made], lambda: work() and None)

    do("A", lambda: made.write_text("of A"))
    with pytest.raises(KeyboardInterrupt):
        do("B", stopped)
    do("A", lambda: made.write_text("of A again"))
    assert made.read_text() == "of A again"


def test_another_content_of_a_named_set_decides_the_search_and_its_check(
    finished: Finished, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.json"
    document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "refused"}
    digests = []
    for expert in (3, 4):
        other.write_text(json.dumps(document | {"experts": [{"layer": 1, "expert": expert}]}))
        for request in (
            replace(finished.request, compare=(str(other),)),
            replace(finished.request, candidates=f"{other}:1"),
            replace(finished.request, harm=str(other)),
            replace(finished.request, xstest=str(other)),
        ):
            asked: list[Any] = []
            with monkeypatch.context() as patch:
                patch.setattr(
                    Steps, "do", lambda self, name, inputs, *rest, asked=asked: asked.append((name, str(inputs)))
                )
                tune(request, plan_tuning(request, asked.append), asked.append, unseen, lambda: EngineDouble(model))  # type: ignore[arg-type, return-value]
            digests.append(dict(one for one in asked if isinstance(one, tuple))["refine and check"])
    assert len(set(digests)) == 8


def test_the_plan_names_the_reroute_that_is_measured_and_one_load(tmp_path: Path) -> None:
    """On routers without a bias it said reroute, and two loads of an engine."""
    arguments = ("--model", EXAMPLES / "tiny-qwen3", "--prompts", "what-happened:listed", "-o", tmp_path / "o")
    code, out, _ = mote_tune(*arguments, "--dry-run")
    assert code == 0 and "(all-active, reroute (centroid))" in out
    assert out.count("1 engine load") == 1


@pytest.mark.slow
def test_a_run_stopped_at_any_place_goes_on_there(finished: Finished, request_: TuneRequest, model: Path) -> None:
    num_generated = 0
    # In the recording, at the neutral answers, in the check, in the last of its random sets.
    for dies_after in (25, 18, 10, finished.num_generated - 80):
        stopped = EngineDouble(model, dies_after=dies_after)
        with pytest.raises(KeyboardInterrupt):
            run(request_, stopped)
        num_generated += stopped.num_generated
    last = EngineDouble(model)
    done, _ = run(request_, last)
    assert num_generated + last.num_generated == finished.num_generated and last.num_generated > 0
    assert done.check.primary_comparison() == finished.tuned.check.primary_comparison()
    for name in ("found.json", "refined.json"):
        left, right = (ExpertSet.load(folder / name) for folder in (request_.output, finished.request.output))
        assert left.experts == right.experts
    # Another option decides another search, but neither the recording nor the list.
    _, said = run(replace(request_, max_experts=1), last)
    assert [line.split(":")[0] for line in said if "done before" in line] == ["record", "label", "find"]


def test_a_search_that_finds_nothing_is_said_and_leaves_no_variant(
    request_: TuneRequest, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.tune.tune.write_report", lambda *arguments: "left out")
    ranked = tmp_path / "ranked.json"
    document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "refused"}
    ranked.write_text(json.dumps(document | {"experts": [{"layer": 1, "expert": 3}]}))
    request = replace(request_, candidates=str(ranked), budget_kl=1e-9)
    with pytest.raises(IncompleteError, match="everything but a variant: the search found no set"):
        run(request, EngineDouble(model))
    assert not request_.variant.exists() and request_.found.is_file()


def test_candidates_are_those_of_the_ranking(
    request_: TuneRequest, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.tune.tune.write_report", lambda *arguments: "left out")
    request = replace(request_, candidates="found:3", controls=0, null_searches=0)
    with suppress(IncompleteError):  # whether those three move anything is not asked here
        run(request, EngineDouble(model))
    assert len(ExpertSet.load(request.ranked).experts) == 3 and len(ExpertSet.load(request.found).experts) == 4
    results = json.loads((request.output / "refine" / "refine.json").read_text())
    assert len(results["screened"]) == 3


def test_what_is_measured_is_the_reroute_that_a_checkpoint_holds(request_: TuneRequest) -> None:
    plan = plan_tuning(request_, lambda message: None)
    assert as_written(request_, plan).semantics == "reroute"
    unbiased = plan_tuning(replace(request_, model=str(EXAMPLES / "tiny-qwen3")), lambda message: None)
    assert as_written(request_, unbiased).semantics == "reroute (centroid)"
    assert as_written(replace(request_, semantics="drop"), unbiased).semantics == "drop"


def test_prompts_without_the_behaviour_are_one_sentence(request_: TuneRequest, model: Path) -> None:
    with pytest.raises(MoteError, match="--behavior TRUNCATED: no class 'TRUNCATED'"):
        run(replace(request_, target="truncated"), EngineDouble(model))


def mote_tune(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["mote-tune", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_dry_run_says_steps_and_costs_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    arguments = ("--model", model, "--behavior", "refused", "--prompts", "what-happened:listed", "-o", tmp_path / "o")
    code, out, _ = mote_tune(*arguments, "--dry-run", "--tokens-per-second", "1000")
    assert code == 0 and not (tmp_path / "o").exists()
    assert "1. record 539 responses" in out and "at most 48 edits" in out and "one engine load" in out
    assert "at 1,000 tokens/s (given)" in out
    code, out, _ = mote_tune(*arguments, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["engine_loads"] == 1
    assert [part["edits"] for part in plan["refine_costs"]["search_parts"]][0] == 48
    code, out, _ = mote_tune(*arguments, "--dry-run", "--json", "--weights", "float16")
    size, with_weights = (one["recording"]["max_size_bytes"] for one in (plan, json.loads(out)))
    assert code == 0 and with_weights == 3 * size  # two bytes of weight beside one of id


def test_the_one_engine_keeps_the_weights_that_are_asked_for(
    request_: TuneRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("eval.tune.tune.Engine", lambda model, **options: given.append(options))
    plan = plan_tuning(replace(request_, weights="float32"), lambda text: None)
    assert plan.manifest["weights"] == "float32"
    OneEngine(plan)()
    assert given[0]["weights"] == "float32" and given[0]["record"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (("--top", "0"), "--top is 0, expected at least 1"),
        (("--max-experts", "0"), "--max-experts is 0, expected at least 1"),
        (("--candidates", "found"), "--candidates is found, expected a number above 0 as in found:200"),
        (("--behavior", "rude"), "--behavior is 'rude', expected"),
        (("--tokens-per-second", "0"), "--tokens-per-second is 0, expected more than 0"),
        (("--weights", "int8"), "--weights is 'int8', expected float16 or float32"),
    ],
)
def test_mistakes_are_one_sentence(model: Path, tmp_path: Path, changes: tuple[str, str], sentence: str) -> None:
    code, out, err = mote_tune(
        "--model", model, "--prompts", "what-happened:listed", "-o", tmp_path / "o", "--dry-run", *changes
    )
    assert code == 1 and sentence in err and not out
    assert err.count("error: ") == 1
