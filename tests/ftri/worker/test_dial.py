"""What a request to a served variant may choose, and what its caches go by."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ftri.prompts.rendering import load_tokenizer
from ftri.worker.dial import Dial, check_unserved, salt
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import ServedSet, served_config
from rewriter.errors import RecordError

SETS = {
    "refusal": ServedSet(semantics="drop-renorm", suppress=((1, 3), (2, 4))),
    "rerouted": ServedSet(semantics="reroute", suppress=((1, 3),)),
}
EXAMPLES = Path(__file__).parents[3] / "examples"


def make_dial(
    base: Path, folder: Path, default: str | None, *, has_dial: bool, sets: Mapping[str, ServedSet] = SETS
) -> Dial:
    _, config = served_config(Checkpoint.open(base), sets, default, has_dial=has_dial)
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return Dial(folder)


@pytest.fixture(scope="module")
def dial(tiny_r1: Path, tmp_path_factory: pytest.TempPathFactory) -> Dial:
    return make_dial(tiny_r1, tmp_path_factory.mktemp("dial") / "dialled", None, has_dial=True)


def test_a_request_chooses_by_name_and_strength(dial: Dial) -> None:
    assert dial.choose({}) is None and dial.choose({"mote": "none"}) is None
    assert dial.choose({"mote": "refusal"}) == ("refusal", 1.0)
    assert dial.choose({"mote": "refusal", "mote_strength": 0.5, "other": 1}) == ("refusal", 0.5)
    assert dial.choose({"mote": "refusal", "mote_strength": 0}) is None
    read = dial.read({"mote": "refusal", "mote_strength": 0.25})
    assert read is not None and read[1].factor == [(1, 3, 0.75), (2, 4, 0.75)] and read[1].renormalize
    rerouted = dial.read({"mote": "rerouted"})
    assert rerouted is not None and rerouted[1].bias == [(1, 3, float("-inf"))]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mote": "refusals"}, "expected one of none, refusal, rerouted"),
        ({"mote": ["refusal"]}, "expected one of"),
        ({"mote": None}, "expected one of"),
        ({"mote_strength": 0.5}, "mote is None"),
        ({"mote": "refusal", "mote_strength": 1.5}, "expected a number of 0 to 1"),
        ({"mote": "refusal", "mote_strength": -1}, "expected a number of 0 to 1"),
        ({"mote": "refusal", "mote_strength": float("nan")}, "expected a number of 0 to 1"),
        ({"mote": "refusal", "mote_strength": "1"}, "expected a number of 0 to 1"),
        ({"mote": "refusal", "mote_strength": True}, "expected a number of 0 to 1"),
        ({"mote_edit": {"key": "x", "edit": {}}}, "mote_edit cannot be given"),
    ],
)
def test_what_cannot_be_chosen_is_refused(dial: Dial, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dial.choose(given)


def test_without_a_dial_everybody_gets_the_one_set(tiny_r1: Path, tmp_path: Path) -> None:
    static = make_dial(tiny_r1, tmp_path / "static", "refusal", has_dial=False)
    assert static.choose({}) == ("refusal", 1.0)
    with pytest.raises(ValueError, match="has no dial"):
        static.choose({"mote": "none"})


def test_caches_go_by_name_strength_and_the_request_s_own_salt() -> None:
    salts = [salt(("a", 1.0), None), salt(("a", 0.5), None), salt(("b", 1.0), None), salt(("a", 1.0), "mine")]
    assert len(set(salts)) == len(salts)
    # A client's own salt for the base, spelled as that of a choice, used to find what the choice had cached.
    salts += [salt(None, one) for one in ("mine", *map(str, salts))]
    assert salt(None, None) is None and len(set(salts)) == len(salts)


def test_a_part_of_what_has_no_parts_is_refused_before_it_reaches_a_worker(dial: Dial, tmp_path: Path) -> None:
    """A worker that cannot plan a request's edit ends the server for everybody."""
    assert dial.choose({"mote": "rerouted", "mote_strength": 0.5}) == ("rerouted", 0.5)
    sets = {
        "centroid": ServedSet(semantics="reroute (centroid)", suppress=((1, 3),)),
        "dropped": ServedSet(semantics="drop", suppress=((1, 3),)),
    }
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / "base" / name).write_bytes((EXAMPLES / "tiny-qwen3" / name).read_bytes())
    unbiased = make_dial(tmp_path / "base", tmp_path / "dialled", None, has_dial=True, sets=sets)
    assert unbiased.choose({"mote": "centroid"}) == ("centroid", 1.0)
    assert unbiased.choose({"mote": "dropped", "mote_strength": 0.5}) == ("dropped", 0.5)
    assert unbiased.choose({"mote": "centroid", "mote_strength": 0}) is None
    with pytest.raises(
        ValueError, match=r"is 0.25, expected 0 or 1 for centroid, whose reroute \(centroid\) has no parts"
    ):
        unbiased.choose({"mote": "centroid", "mote_strength": 0.25})


def test_its_tokenizer_is_the_base_s(tiny_r1: Path, tmp_path: Path) -> None:
    make_dial(tiny_r1, tmp_path / "static", "refusal", has_dial=False)
    text = "What happened at Berlin Wall?"
    assert load_tokenizer(tmp_path / "static")(text).input_ids == load_tokenizer(tiny_r1)(text).input_ids
    with pytest.raises(RecordError, match="mote block"):
        broken = json.loads((tmp_path / "static/config.json").read_text()) | {"mote": {}}
        (tmp_path / "static/config.json").write_text(json.dumps(broken))
        load_tokenizer(tmp_path / "static")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mote": "refusal"}, "mote is given, but the model is no served variant"),
        ({"mote": "none"}, "mote is given, but"),
        ({"mote_strength": 0.5}, "mote_strength is given, but"),
        # What HTTP can carry: text, numbers and lists.
        ({"mote_edit": "x"}, "mote_edit is no edit"),
        ({"mote_edit": [1]}, "mote_edit is no edit"),
        ({"mote_edit": {"key": "x"}}, "mote_edit is no edit"),
    ],
)
def test_where_no_variant_is_served_nothing_can_be_chosen(given: dict[str, Any], sentence: str) -> None:
    check_unserved({"other": 1})
    check_unserved({"mote_edit": {"key": "x", "edit": {}}})
    with pytest.raises(ValueError, match=sentence):
        check_unserved(given)
