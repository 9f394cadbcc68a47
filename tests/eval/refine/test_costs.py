"""What a search costs, reckoned before anything is loaded."""

import json
from pathlib import Path

import pytest
from running import run_main
from tiny_models import described_tiny_r1

from eval.refine.cli import main
from eval.refine.costs import search_parts
from eval.refine.options import RefineRequest


def request(**changes: object) -> RefineRequest:
    return RefineRequest(model="m", prompts="p", output=Path("refined.json"), **changes)  # type: ignore[arg-type]


def test_a_full_screen_of_r1_is_what_the_docs_reckon_with() -> None:
    """58 layers of 256 experts; 20 prompts of 20 tokens and 5 that decide; 8 neutral answers of 32 tokens after 20."""
    screening, growing, nulls = search_parts(
        request(), num_candidates=58 * 256, num_finding=270, tokens_a_prompt=25.0, neutral_tokens=8 * 52.0
    )
    assert (screening.edits, screening.tokens, screening.at_most) == (14_848, 13_600_768, True)
    # 32 strongest, ten steps, of which the n-th tries those not yet taken and each earlier one taken out.
    assert growing.edits == sum(32 - taken + max(taken - 1, 0) for taken in range(10))
    assert growing.tokens == growing.edits * (60 * 25 + 416)
    assert nulls.edits == 3 * (screening.edits + growing.edits) and nulls.tokens == 3 * (
        screening.tokens + growing.tokens
    )


def test_few_prompts_and_candidates_bound_what_is_measured() -> None:
    screening, growing = search_parts(
        request(candidates="ranked.json", null_searches=0, max_experts=10),
        num_candidates=3,
        num_finding=4,
        tokens_a_prompt=10.0,
        neutral_tokens=0.0,
    )
    assert (screening.edits, screening.tokens, screening.at_most) == (3, 120, False)
    assert growing.edits == 3 + 2 + 2


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A model that is described but has no weights: enough to reckon with."""
    folder = tmp_path_factory.mktemp("costs")
    model = described_tiny_r1(folder / "model")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return ["--model", model, "--prompts", "what-happened:listed", "-o", folder / "refined.json", "--dry-run"]


def test_dry_run_says_edits_answers_and_time_and_writes_nothing(arguments: list[object]) -> None:
    said = run_main(main, "mote-refine", *arguments, "--tokens-per-second", "1000")
    assert said.returncode == 0, said.stderr
    assert "at most 48 edits" in said.stdout and "at 1,000 tokens/s (given)" in said.stdout
    assert "half of it: --null-searches 1" in said.stdout and "half of it: --controls 49" in said.stdout
    assert [path.name for path in Path(str(arguments[5])).parent.iterdir()] == ["model"]
    plan = json.loads(run_main(main, "mote-refine", *arguments, "--json").stdout)
    assert plan["search"]["seconds"] is None and plan["search"]["engine_loads"] == 1
    answers = {part["part"]: part["answers"] for part in plan["answer_parts"]}
    assert answers["base"] == 539 and answers["3 null searches, held out"] == 3 * 269


def test_a_rate_of_nothing_is_one_sentence(arguments: list[object]) -> None:
    said = run_main(main, "mote-refine", *arguments, "--tokens-per-second", "0")
    assert said.returncode == 1 and "--tokens-per-second is 0, expected more than 0" in said.stderr
