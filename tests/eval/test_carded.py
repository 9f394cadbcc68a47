"""A card takes up results of its own folder's experts and of no others."""

import json
from pathlib import Path

import pytest

from eval.answers.arms import Arm
from eval.carded import check_card
from rewriter.errors import InputError
from rewriter.rewrite import RewriteRequest, execute, prepare
from rewriter.serve import execute_served, prepare_served

EXAMPLES = Path(__file__).parents[2] / "examples"
PAIRS = ((2, 46), (4, 23))


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> RewriteRequest:
    experts = [{"layer": 2, "expert": 46, "bias_shift": -0.03}, {"layer": 4, "expert": 23}]
    document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "refused", "experts": experts}
    folder = tmp_path_factory.mktemp("carded")
    (folder / "set.json").write_text(json.dumps(document))
    return RewriteRequest(model=str(EXAMPLES / "tiny-r1"), suppress=str(folder / "set.json"), output=folder / "variant")


@pytest.fixture(scope="module")
def variant(request_: RewriteRequest) -> Path:
    execute(prepare(request_, say=print))
    assert request_.output is not None
    return request_.output


def arm(**changes: object) -> Arm:
    own = {"semantics": "reroute", "suppress": PAIRS, "bias_shifts": ((2, 46, -0.03),)}
    return Arm("variant", "variant", **own | changes)  # type: ignore[arg-type]


def test_the_variant_s_own_edit_is_taken_without_a_word(variant: Path) -> None:
    assert check_card(variant, arm()) == ""
    assert check_card(variant, arm(suppress=PAIRS[::-1])) == ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"suppress": PAIRS[:1]},
            "is a variant of the experts 2/46, 4/23, but what is measured edits the experts 2/46; ",
        ),
        ({"suppress": (), "stimulate": PAIRS}, r"edits the experts 2/46 \(stimulated\), 4/23 \(stimulated\)"),
        (
            {"bias_shifts": ()},
            r"layer 2 expert 46 by other numbers \(bias shift -0.03, output x None\) than .* \(None, None\)",
        ),
        ({"bias_shifts": ((2, 46, -0.04),)}, "by other numbers"),
        ({"factors": ((4, 23, 0.5),)}, "layer 4 expert 23 by other numbers"),
    ],
)
def test_another_edit_s_results_are_refused(variant: Path, changes: dict[str, object], sentence: str) -> None:
    """Any variant's card took up any results."""
    with pytest.raises(InputError, match=sentence):
        check_card(variant, arm(**changes))


def test_another_way_of_editing_the_same_experts_is_said(variant: Path) -> None:
    note = check_card(variant, arm(semantics="drop", bias_shifts=()))
    assert note.startswith(
        "This folder is a reroute with a finite shift; what was measured is the drop of the same experts"
    )
    part = check_card(variant, arm(semantics="drop", bias_shifts=(), factors=((4, 23, 0.5),)))
    assert "what was measured is the drop in part of" in part


def test_of_a_served_variant_its_one_set_counts(request_: RewriteRequest, tmp_path: Path) -> None:
    whole = tmp_path / "set.json"
    document = json.loads(Path(request_.suppress or "").read_text())
    del document["experts"][0]["bias_shift"]
    whole.write_text(json.dumps(document))
    asked = RewriteRequest(
        model=request_.model, suppress=str(whole), output=tmp_path / "served", semantics="drop-renorm"
    )
    execute_served(prepare_served(asked, [], say=print))
    served = arm(semantics="drop-renorm", bias_shifts=())
    assert check_card(tmp_path / "served", served) == ""
    with pytest.raises(InputError, match="expected --card of the variant that is measured"):
        check_card(tmp_path / "served", arm(suppress=PAIRS[:1]))


def test_what_has_no_record_is_taken_on_trust(tmp_path: Path) -> None:
    assert check_card(tmp_path, arm()) == ""
    assert check_card(EXAMPLES / "tiny-r1", arm()) == ""
