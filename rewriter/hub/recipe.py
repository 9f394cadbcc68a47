"""A recipe: a variant without weights. The experts, the values and the hashes of the base's tensors, a few kilobytes."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.plan import EditOptions, Plan
from rewriter.errors import CheckpointError, HubError, InputError, PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.hub.errors import hub_errors, quiet_hub_logs
from rewriter.hub.models import looks_like_repo_id

RECIPE_SCHEMA = "mote.recipe/1"
RECIPE_NAME = "mote-recipe.json"


class RecipeTensor(BaseModel):
    """One range of a base tensor: `size_bytes` from byte `start`, with its SHA-256 before and after the edit."""

    model_config = ConfigDict(extra="ignore")

    name: str
    start: int = Field(ge=0, description="First byte, counted from the start of the tensor.")
    size_bytes: int = Field(gt=0)
    sha256_before: str = Field(pattern="^[0-9a-f]{64}$")
    sha256_after: str = Field(pattern="^[0-9a-f]{64}$")


class RecipeExpert(BaseModel):
    """One expert, by its model layer."""

    model_config = ConfigDict(extra="allow")

    layer: int = Field(ge=0)
    expert: int = Field(ge=0)
    action: Literal["suppress", "stimulate"]


class Recipe(BaseModel):
    """All that makes a variant out of a base that somebody else has."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    schema_id: Annotated[Literal["mote.recipe/1"], Field(alias="schema")] = "mote.recipe/1"
    tool_version: str
    base_model: str | None = None
    base_revision: str | None = None
    behavior: str
    semantics: Literal["reroute", "drop"]
    suppress_bias: str | float = "auto"
    renormalize: bool = False
    experts: list[RecipeExpert] = Field(min_length=1)
    tensors: list[RecipeTensor] = Field(min_length=1)
    expert_sets: list[dict[str, Any]] = []

    def to_json(self) -> str:
        """The JSON text."""
        return json.dumps(self.model_dump(by_alias=True), indent=2, ensure_ascii=False) + "\n"

    @property
    def options(self) -> EditOptions:
        """The options that the variant was made with."""
        return EditOptions(self.semantics, self.suppress_bias, self.renormalize)

    def expert_set(self, action: Literal["suppress", "stimulate"]) -> ExpertSet | None:
        """The experts of one action as an expert set, or None if there are none."""
        chosen = [ExpertEntry(layer=e.layer, expert=e.expert) for e in self.experts if e.action == action]
        if not chosen:
            return None
        # The sets are listed in the order of the actions; one with a single action has a single set.
        actions = [kind for kind in ("suppress", "stimulate") if any(e.action == kind for e in self.experts)]
        known = self.expert_sets[actions.index(action)] if len(self.expert_sets) == len(actions) else {}
        return ExpertSet(
            model=self.base_model,
            revision=self.base_revision,
            layer_index="model",
            behavior=str(known.get("behavior", self.behavior)),
            experts=chosen,
            provenance=dict(known.get("provenance") or {}),
        )


def recipe_from_block(block: dict[str, Any]) -> Recipe:
    """Make a recipe of a variant's `mote` block.

    Raises:
        InputError: the block lacks what a recipe needs.
    """
    try:
        return Recipe.model_validate({**block, "schema": RECIPE_SCHEMA})
    except ValidationError as error:
        raise InputError(f"the `mote` block of config.json makes no recipe: {_first_problem(error)}") from None


def load_recipe(source: str) -> Recipe:
    """Read a recipe from a file, a folder with mote-recipe.json, or a Hub repo ORG/NAME[@BRANCH] (one file is fetched).

    Raises:
        InputError: no such file, or not a recipe.
        HubError: the repo does not exist, holds no recipe, or cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / RECIPE_NAME
    elif not path.exists() and looks_like_repo_id(source.partition("@")[0]):
        repo_id, _, revision = source.partition("@")
        path = _fetch(repo_id, revision or None)
    if not path.is_file():
        raise InputError(f"'{source}' is neither a recipe file, a folder with {RECIPE_NAME}, nor a repo ORG/NAME")
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(f"'{path}' is no recipe of schema {RECIPE_SCHEMA}: {_first_problem(error)}") from None


def check_base(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Refuse a base that is not the recipe's, by the bytes that the recipe would change.

    Raises:
        CheckpointError: a tensor is missing, shorter, or has other bytes; the message names it.
    """
    where = checkpoint.source.name
    expected = f"the recipe is for {recipe.base_model or 'another base'}" + (
        f" at revision {recipe.base_revision}" if recipe.base_revision else ""
    )
    for tensor in recipe.tensors:
        entry = checkpoint.find((tensor.name,))
        if entry is None:
            raise CheckpointError(f"{where}: has no tensor {tensor.name}; {expected}")
        if tensor.start + tensor.size_bytes > entry.size_bytes:
            raise CheckpointError(
                f"{where}: {tensor.name} has {entry.size_bytes} bytes, expected at least "
                f"{tensor.start + tensor.size_bytes}; {expected}"
            )
        found = hashlib.sha256(checkpoint.read(entry.part(tensor.start, tensor.size_bytes))).hexdigest()
        if found != tensor.sha256_before:
            raise CheckpointError(
                f"{where}: {tensor.name} has SHA-256 {found[:16]}..., expected {tensor.sha256_before[:16]}...; {expected}"
            )


def check_plan(recipe: Recipe, plan: Plan) -> None:
    """Refuse a plan that would write other bytes than the recipe's author did.

    Raises:
        PlanError: naming the tensor.
    """
    expected = {(tensor.name, tensor.start): tensor.sha256_after for tensor in recipe.tensors}
    planned = {(patch.tensor, patch.start): patch.sha256_after for patch in plan.patches}
    for place in sorted(expected.keys() | planned.keys()):
        if expected.get(place) != planned.get(place):
            raise PlanError(
                f"{place[0]}: the recipe, made by MoTE {recipe.tool_version}, gives other bytes than this version would "
                "write; install that version to apply it"
            )


def _fetch(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    quiet_hub_logs()
    with hub_errors(repo_id):
        try:
            return Path(hf_hub_download(repo_id, RECIPE_NAME, revision=revision, library_name="mote"))
        except RemoteEntryNotFoundError:
            raise HubError(f"'{repo_id}' holds no {RECIPE_NAME}: it is no recipe; use --model for a model") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the document"
    return f"{place}: {problem['msg']}"
