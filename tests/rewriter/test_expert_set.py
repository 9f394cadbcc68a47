"""The expert set: its file format, presets, bare lists, and how layers are counted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from checkpoints import build_checkpoint, write_json, write_set
from commands import Command

from rewriter.errors import ExpertSetError
from rewriter.expert_set import ExpertSet, preset_names, published_schema

Refuse = Callable[..., str]
PUBLISHED = Path(__file__).parents[2] / "docs" / "expert-set.schema.json"


def test_published_schema_is_the_code_s() -> None:
    assert json.loads(PUBLISHED.read_text()) == published_schema()


def test_module_prints_the_schema() -> None:
    printed = subprocess.run([sys.executable, "-m", "rewriter.expert_set"], capture_output=True, text=True, check=True)
    assert printed.stdout == PUBLISHED.read_text()


@pytest.mark.parametrize("name", ["r1-refusal", "r1-english-reasoning"])
def test_preset_follows_the_published_schema(name: str) -> None:
    assert name in preset_names()
    expert_set = ExpertSet.load(f"preset:{name}")
    jsonschema.validate(json.loads(expert_set.to_json()), json.loads(PUBLISHED.read_text()))
    assert expert_set.model == "deepseek-ai/DeepSeek-R1"
    assert len(expert_set.experts) == 10
    assert "leaves open" in expert_set.provenance["layer_convention"]
    # Every layer number fits both conventions on R1, which is why the preset must say so.
    r1_layers = range(3, 61)
    assert expert_set.model_pairs(r1_layers)[0] == (expert_set.experts[0].layer, expert_set.experts[0].expert)
    other = expert_set.model_copy(update={"layer_index": "moe"})
    assert other.model_pairs(r1_layers)[0][0] == expert_set.experts[0].layer + 3


def test_presets_are_the_paper_s_lists() -> None:
    refusal = [(entry.layer, entry.expert) for entry in ExpertSet.load("preset:r1-refusal").experts]
    assert refusal == [
        (48, 176), (52, 222), (39, 98), (25, 21), (46, 41), (53, 102), (36, 141), (14, 215), (20, 225), (25, 63),
    ]  # fmt: skip
    english = [(entry.layer, entry.expert) for entry in ExpertSet.load("preset:r1-english-reasoning").experts]
    assert english == [
        (12, 246), (4, 143), (43, 24), (25, 72), (16, 172), (36, 182), (26, 11), (31, 10), (20, 148), (37, 20),
    ]  # fmt: skip


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    document = {
        "schema": "mote.expert-set/1",
        "model": "org/name",
        "revision": "abc",
        "layer_index": "moe",
        "behavior": "refusal é",
        "experts": [{"layer": 1, "expert": 2, "resonance": 0.25, "p_value": 0.01}, {"layer": 0, "expert": 0}],
        "provenance": {"prompts": "listed", "nested": {"seed": 1}},
    }
    first = write_json(tmp_path / "set.json", document)
    second = tmp_path / "again.json"
    ExpertSet.load(first).save(second)
    assert json.loads(second.read_text()) == document
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "set.json"]


def test_schema_key_is_spelled_schema_whatever_it_was_made_from() -> None:
    made = ExpertSet(layer_index="model", behavior="x", experts=[])
    assert json.loads(made.to_json())["schema"] == "mote.expert-set/1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema": "mote.expert-set/2"}, "schema"),
        ({"layer_index": "layers"}, "layer_index"),
        ({"behavior": ""}, "behavior"),
        ({"behaviour": "x"}, "behaviour is not a key"),
        ({"experts": {"layer": 1}}, "experts"),
        ({"experts": [{"layer": 1}]}, "experts.0.expert is missing"),
        ({"experts": [{"layer": 1, "expert": -1}]}, "experts.0.expert is -1"),
        ({"experts": [{"layer": 1.0, "expert": 1}]}, "experts.0.layer is 1.0"),
        ({"experts": [{"layer": True, "expert": 1}]}, "experts.0.layer is true"),
        ({"experts": [{"layer": "1", "expert": 1}]}, 'experts.0.layer is "1"'),
        ({"experts": [[1, 2]]}, "experts.0"),
    ],
)
def test_malformed_file(base: Path, tmp_path: Path, refuse: Refuse, changes: dict[str, Any], expected: str) -> None:
    path = write_set(tmp_path / "set.json", [(1, 1)], **changes)
    sentence = refuse(base, "--suppress", path)
    assert sentence.startswith(f"{path}: ") and expected in sentence


@pytest.mark.parametrize("text", ["", "{", "3", '"text"', "null", "[" * 100_000])
def test_file_that_is_no_expert_set(base: Path, tmp_path: Path, refuse: Refuse, text: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    assert str(path) in refuse(base, "--suppress", path)


def test_file_that_is_not_there(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    assert "cannot be read (No such file or directory)" in refuse(base, "--suppress", tmp_path / "none.json")


def test_file_in_another_encoding(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "set.json").write_bytes(b"\xff\xfe")
    assert "not UTF-8 text (byte 0)" in refuse(base, "--suppress", tmp_path / "set.json")


def test_unknown_preset_names_those_there_are(base: Path, refuse: Refuse) -> None:
    assert "no preset named 'nope'; there are: r1-english-reasoning, r1-refusal" in refuse(
        base, "--suppress", "preset:nope"
    )


def test_bare_list_needs_model_and_layer_index(
    base: Path, tmp_path: Path, refuse: Refuse, mote_rewrite: Command
) -> None:
    path = write_json(tmp_path / "pairs.json", [[0, 3], [2, 5]])
    assert "give --model and --layer-index model|moe" in refuse(base, "--suppress", path)
    outcome = mote_rewrite(
        "--model", base, "--suppress", path, "--layer-index", "moe", "-o", tmp_path / "out", "--dry-run", "--json"
    )
    experts = json.loads(outcome.stdout)["mote"]["experts"]
    assert [(entry["layer"], entry["expert"]) for entry in experts] == [(1, 3), (3, 5)]


@pytest.mark.parametrize("pairs", [[[1]], [[1, 2, 3]], [["1", 2]], [[1, 2.0]], [[1, True]], [{"layer": 1}], [7]])
def test_bare_list_of_something_else(base: Path, tmp_path: Path, refuse: Refuse, pairs: list[Any]) -> None:
    path = write_json(tmp_path / "pairs.json", pairs)
    sentence = refuse(base, "--suppress", path, "--layer-index", "model")
    assert f"{path}: entry 0 is {json.dumps(pairs[0])}, expected [layer, expert]" in sentence


def test_empty_set(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = write_set(tmp_path / "empty.json", [])
    assert "expert set 'empty': holds no experts, expected at least one" in refuse(base, "--suppress", path)


def test_empty_bare_list(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = write_json(tmp_path / "empty.json", [])
    assert "holds no experts" in refuse(base, "--suppress", path, "--layer-index", "model")


def test_neither_suppress_nor_stimulate(base: Path, refuse: Refuse) -> None:
    assert "give --suppress FILE, --stimulate FILE or both" in refuse(base)


def test_expert_out_of_range(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = write_set(tmp_path / "set.json", [(1, 3), (2, 16)])
    assert "layer 2 has no expert 16, the routed experts are 0..15" in refuse(base, "--suppress", path)


def test_layer_out_of_range_names_the_other_convention_where_it_fits(
    base: Path, tmp_path: Path, refuse: Refuse
) -> None:
    path = write_set(tmp_path / "set.json", [(0, 3), (2, 5)])
    sentence = refuse(base, "--suppress", path)
    assert "layer 0 is not one of the model's MoE layers, which are 1..4 with layer_index 'model'" in sentence
    assert "would fit --layer-index moe (0..3)" in sentence
    path = write_set(tmp_path / "set.json", [(4, 3)], layer_index="moe")
    sentence = refuse(base, "--suppress", path)
    assert "which are 0..3 with layer_index 'moe'" in sentence and "would fit --layer-index model (1..4)" in sentence


def test_layer_out_of_range_of_both_conventions(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = write_set(tmp_path / "set.json", [(0, 3), (9, 5)])
    sentence = refuse(base, "--suppress", path)
    assert "1..4" in sentence and "would fit" not in sentence


def test_layers_with_gaps_are_listed() -> None:
    expert_set = ExpertSet(layer_index="model", behavior="x", experts=[{"layer": 2, "expert": 0}])  # type: ignore[list-item]
    with pytest.raises(ExpertSetError, match=r"which are 1, 3, 5 with"):
        expert_set.model_pairs((1, 3, 5))


def test_duplicate_entries(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = write_set(tmp_path / "set.json", [(1, 3), (2, 5), (1, 3)])
    assert "layer 1 expert 3 stands 2 times, expected once" in refuse(base, "--suppress", path)


def test_contradicting_entries(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    suppress = write_set(tmp_path / "suppress.json", [(1, 3), (2, 5)])
    stimulate = write_set(tmp_path / "stimulate.json", [(1, 5)], layer_index="moe")  # model layer 2
    sentence = refuse(base, "--suppress", suppress, "--stimulate", stimulate)
    assert "layer 2 expert 5 is to be both suppressed and stimulated" in sentence


@pytest.mark.parametrize("top", [0, -1, 4])
def test_top_out_of_range(base: Path, refusal: Path, refuse: Refuse, top: int) -> None:
    sentence = refuse(base, "--suppress", refusal, "--top", top)
    assert f"top {top} of the expert set 'refusal' asked for, but it holds 3 experts" in sentence


def test_top_takes_the_first(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    outcome = mote_rewrite(
        "--model", base, "--suppress", refusal, "--top", 1, "--dry-run", "--json", "-o", tmp_path / "o"
    )
    experts = json.loads(outcome.stdout)["mote"]["experts"]
    assert [(entry["layer"], entry["expert"]) for entry in experts] == [(1, 3)]


def test_sets_of_different_models(tmp_path: Path, mote_rewrite: Command) -> None:
    first = write_set(tmp_path / "a.json", [(1, 1)], model="org/one")
    second = write_set(tmp_path / "b.json", [(1, 2)], model="org/two")
    sentence = mote_rewrite("--suppress", first, "--stimulate", second).error
    assert "different models (org/one and org/two)" in sentence
    second = write_set(tmp_path / "b.json", [(1, 2)], model="org/one", revision="x")
    first = write_set(tmp_path / "a.json", [(1, 1)], model="org/one", revision="y")
    assert "different revisions of org/one (x and y)" in mote_rewrite("--suppress", first, "--stimulate", second).error


def test_no_model_named(refusal: Path, mote_rewrite: Command) -> None:
    assert "give --model PATH_OR_HUB_ID" in mote_rewrite("--suppress", refusal).error


def test_model_folder_relative_to_the_file(
    tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is found from the file's place, wherever the command runs, and names the output."""
    build_checkpoint(tmp_path / "sets" / "models" / "tiny")
    path = write_set(tmp_path / "sets" / "refusal.json", [(1, 3)], model="models/tiny")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = mote_rewrite("--suppress", path)
    assert outcome.code == 0, outcome.stderr
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["tiny-mote-refusal"]


def test_extra_numbers_of_an_expert_do_not_matter_to_the_edit(
    base: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    path = write_set(tmp_path / "set.json", [], experts=[{"layer": 1, "expert": 3, "effect": 0.4, "note": "x"}])
    assert mote_rewrite("--model", base, "--suppress", path, "-o", tmp_path / "out").code == 0
