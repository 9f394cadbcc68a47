"""The plan that a recipe, or the record of a variant, stands for, worked out anew on a base and held against what it says."""

import hashlib

from rewriter.checkpoint.kinds import Model
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import Plan, make_plan
from rewriter.edit.record import Recipe, VariantRecord, expert_set_of
from rewriter.errors import CheckpointError, PlanError
from rewriter.semantics import STIMULATE, SUPPRESS


def options_of(record: VariantRecord | Recipe) -> EditOptions:
    """The options that the variant was made with."""
    stamp = record.stamped if isinstance(record, VariantRecord) else True
    return EditOptions(record.semantics, record.suppress_bias, record.renormalize, stamp)


def replan(base: Model, record: VariantRecord) -> Plan:
    """The plan that a variant's record stands for on this base.

    Raises:
        ExpertSetError, PlanError, CheckpointError: as make_plan, where the record does not fit the base.
    """
    return make_plan(
        base,
        expert_set_of(record, SUPPRESS),
        expert_set_of(record, STIMULATE),
        options_of(record),
        base_model=record.base_model,
        base_revision=record.base_revision,
        base_folder=record.base_folder,
    )


def check_base(recipe: Recipe, base: Model) -> None:
    """Refuse a base that is not the recipe's, by the bytes that the recipe would change.

    Raises:
        CheckpointError: a tensor is missing, shorter, or has other bytes; the message names it.
    """
    where = base.source.name
    expected = f"the recipe is for {recipe.base_model or 'another base'}" + (
        f" at revision {recipe.base_revision}" if recipe.base_revision else ""
    )
    for tensor in recipe.tensors:
        entry = base.find((tensor.name,))
        if entry is None:
            raise CheckpointError(f"{where}: has no tensor {tensor.name}; {expected}")
        if tensor.start + tensor.size_bytes > entry.size_bytes:
            raise CheckpointError(
                f"{where}: {tensor.name} has {entry.size_bytes} bytes, expected at least "
                f"{tensor.start + tensor.size_bytes}; {expected}"
            )
        found = hashlib.sha256(base.read(entry.part(tensor.start, tensor.size_bytes))).hexdigest()
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
