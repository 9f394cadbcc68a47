"""Recipes: kilobytes that give the same variant on the same base, and refuse any other base by naming the tensor."""

import json
import shutil
from pathlib import Path

import pytest
from hub_double.fixtures import BASE_ID, EDITED, Hub
from hub_double.models import build_base, build_variant, expert_file

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.record import Recipe, expert_set_of
from rewriter.edit.replan import check_base, check_plan
from rewriter.errors import CheckpointError, InputError, PlanError
from rewriter.hub.recipe import load_recipe
from rewriter.push.files import read_variant
from rewriter.rewrite import RewriteRequest, prepare


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_base(tmp_path / "base")


@pytest.fixture
def variant(base: Path, tmp_path: Path) -> Path:
    return build_variant(base, tmp_path / "variant", None, None, [(2, 1), (2, 5), (4, 3)])


def save(variant: Path, path: Path, **changes: object) -> Path:
    recipe = json.loads(Recipe.of(read_variant(variant)).to_json())
    path.write_text(json.dumps(recipe | changes))
    return path


def test_published_and_applied_recipe_gives_the_same_bytes(hub: Hub) -> None:
    hub.push(hub.variant, "alice/recipe", "--recipe", "--yes")
    files = hub.double.files("alice/recipe")
    assert set(files) == {".gitattributes", "LICENSE", "README.md", "mote-recipe.json", "suppress.json"}
    assert sum(entry["size"] for entry in files.values()) < 10_000
    card = (hub.download("alice/recipe") / "README.md").read_text()
    assert "mote-rewrite --recipe alice/recipe -o ./recipe\nvllm serve ./recipe" in card
    assert "no weights" in card and "mote-recipe" in card and f"base_model: {BASE_ID}" in card

    done = hub.rewrite("--recipe", "alice/recipe", "-o", "applied", "--json")
    assert json.loads(done.stdout)["num_suppressed"] == 2
    for path in hub.variant.iterdir():
        if path.name not in ("README.md", "config.json"):
            assert (hub.root / "applied" / path.name).read_bytes() == path.read_bytes(), path.name
    block = json.loads((hub.root / "applied" / "config.json").read_text())["mote"]
    published = json.loads((hub.variant / "config.json").read_text())["mote"]
    assert block["tensors"] == published["tensors"] and block["experts"] == published["experts"]


def test_recipe_of_a_branch_and_as_remote_plan(hub: Hub) -> None:
    hub.push(hub.variant, "alice/branched", "--recipe", "--revision", "v2", "--yes")
    shown = hub.rewrite("--recipe", "alice/branched@v2", "--remote-plan").stdout
    assert "layer 2: suppress 1 (bias -inf)" in shown and BASE_ID in shown
    missing = hub.rewrite("--recipe", "alice/branched@v9", "--remote-plan", fails=True)
    assert "no such revision" in hub.error(missing)


def test_recipe_does_not_go_beside_weights_or_without_any(hub: Hub) -> None:
    hub.push(hub.variant, "alice/weights", "--yes")
    refused = hub.error(hub.push(hub.variant, "alice/weights", "--recipe", "--yes", fails=True))
    assert "'alice/weights' holds weights" in refused
    assert set(EDITED) < set(hub.double.files("alice/weights"))
    twice = hub.push(hub.variant, "alice/r", "--recipe", "--duplicate-base", "--yes", fails=True)
    assert "cannot go with --duplicate-base" in hub.error(twice)
    none = hub.error(hub.rewrite("--recipe", "alice/weights", fails=True))
    assert "'alice/weights' holds no mote-recipe.json" in none


def test_other_base_is_refused_naming_the_tensor(variant: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(save(variant, tmp_path / "mote-recipe.json", base_model="org/base")))
    other = Checkpoint.open(build_base(tmp_path / "other", seed=1))
    name = r"model\.layers\.2\.mlp\.gate\.e_score_correction_bias has SHA-256 [0-9a-f]{16}\.\.\., expected"
    with pytest.raises(CheckpointError, match=name + r".*the recipe is for org/base"):
        check_base(recipe, other)
    short = Checkpoint.open(build_base(tmp_path / "short", num_layers=3))
    check_first = recipe.model_copy(update={"tensors": recipe.tensors[1:]})
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.4\.mlp\.gate"):
        check_base(check_first, short)
    long = recipe.tensors[0].model_copy(update={"start": 20})
    with pytest.raises(CheckpointError, match="has 32 bytes, expected at least 52"):
        check_base(recipe.model_copy(update={"tensors": [long]}), other)


def test_recipe_from_folder_or_file_plans_as_the_original(variant: Path, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    folder.mkdir()
    path = save(variant, folder / "mote-recipe.json")
    for source in (folder, path):
        request = RewriteRequest(model=str(base), recipe=str(source), output=tmp_path / "out")
        plan = prepare(request, say=lambda message: None).plan
        assert plan.record.tensors == read_variant(variant).tensors
        assert plan.record.behavior == "refusal"


def test_recipe_without_a_stamp_changes_values_alone(variant: Path, base: Path, tmp_path: Path) -> None:
    path = save(variant, tmp_path / "mote-recipe.json")
    request = RewriteRequest(model=str(base), recipe=str(path), output=tmp_path / "out", stamp=False)
    record = prepare(request, say=lambda message: None).plan.record
    assert not record.stamped and record.tensors == read_variant(variant).tensors


def test_plan_with_other_bytes_is_refused(variant: Path, base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(save(variant, tmp_path / "mote-recipe.json")))
    request = RewriteRequest(model=str(base), suppress=str(expert_file(tmp_path, [(2, 1)])), output=tmp_path / "out")
    plan = prepare(request, say=lambda message: None).plan
    with pytest.raises(PlanError, match=r"layers\.2\..*made by MoTE 0\.1\.0, gives other bytes"):
        check_plan(recipe, plan)


def test_suppressed_and_stimulated_experts_keep_their_sets(base: Path, tmp_path: Path) -> None:
    experts = expert_file(tmp_path, [(2, 1)])
    other = tmp_path / "english.json"
    other.write_text(experts.read_text().replace('"expert": 1', '"expert": 6').replace("refusal", "english"))
    request = RewriteRequest(
        model=str(base), suppress=str(experts), stimulate=str(other), suppress_bias="margin", output=tmp_path / "out"
    )
    plan = prepare(request, say=lambda message: None).plan
    recipe = Recipe.of(plan.record)
    assert recipe.suppress_bias == "margin"
    suppress, stimulate = expert_set_of(recipe, "suppress"), expert_set_of(recipe, "stimulate")
    assert suppress is not None and suppress.behavior == "refusal"
    assert stimulate is not None and stimulate.behavior == "english"
    path = tmp_path / "r.json"
    path.write_text(recipe.to_json())
    again = prepare(
        RewriteRequest(model=str(base), recipe=str(path), output=tmp_path / "out"), say=lambda message: None
    ).plan
    assert again.config["mote"] == plan.config["mote"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": "mote.recipe/9"}, """schema is "mote.recipe/9": input should be 'mote.recipe/1'"""),
        ({"tensors": []}, "tensors is []: list should have at least 1 item"),
        ({"experts": [{"layer": -1, "expert": 0, "action": "suppress"}]}, "experts.0.layer"),
        ({"semantics": "vanish"}, "semantics"),
    ],
)
def test_what_is_no_recipe_is_refused(variant: Path, tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    path = save(variant, tmp_path / "bad.json", **changes)
    with pytest.raises(InputError, match="is no recipe of schema mote.recipe/1") as caught:
        load_recipe(str(path))
    assert problem in str(caught.value)


def test_options_that_contradict_a_recipe_are_refused(variant: Path, base: Path, tmp_path: Path) -> None:
    path = save(variant, tmp_path / "mote-recipe.json")
    request = RewriteRequest(model=str(base), recipe=str(path), semantics="drop", output=tmp_path / "out")
    with pytest.raises(InputError, match="--semantics cannot be given with it"):
        prepare(request, say=lambda message: None)
    with pytest.raises(InputError, match="neither a recipe file"):
        load_recipe(str(tmp_path / "none" / "at" / "all"))


def test_recipe_of_a_zeroed_expert_needs_only_its_own_bytes(tmp_path: Path) -> None:
    """Recipes of other edits than biases carry ranges inside tensors; a base that differs elsewhere is accepted."""
    base = build_base(tmp_path / "base")
    variant = build_variant(base, tmp_path / "variant", None, None, [(2, 1)])
    recipe = load_recipe(str(save(variant, tmp_path / "mote-recipe.json")))
    finetuned = Path(shutil.copytree(base, tmp_path / "finetuned"))
    shard = finetuned / "model-00006-of-00006.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    check_base(recipe, Checkpoint.open(finetuned))
