"""The choice that requests to a served variant make (rewriter.edit.dial): by name and strength, checked, planned, kept apart.

A request says `vllm_xargs: {"mote": "refusal", "mote_strength": 0.5}`; `none` is the base.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftri.worker.planning import PlannedEdit, RouterEdit, plan_edit
from ftri.worker.request import EDIT_ARGUMENT, NAME_ARGUMENT, STRENGTH_ARGUMENT
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import BASE_NAME, ServedRecord, is_served, open_base, read_served
from rewriter.errors import MoteError

# Requests may ask for any strength, so plans are kept for those asked for lately.
NUM_PLANS_KEPT = 256

Choice = tuple[str, float]


class Dial:
    """The sets of one served variant."""

    def __init__(self, folder: Path) -> None:
        """Read and check the record in a served variant's folder.

        Raises:
            RecordError: for a record that is damaged or of another model.
        """
        self.record: ServedRecord = read_served(Checkpoint.open(folder).config, folder.name)
        self._checkpoint = open_base(folder)
        self._plans: OrderedDict[Choice, PlannedEdit | None] = OrderedDict()
        self._has_parts: dict[str, bool] = {}

    @property
    def default(self) -> Choice | None:
        """What requests that choose nothing get."""
        return None if self.record.default is None else (self.record.default, 1.0)

    def plan(self, choice: Choice) -> PlannedEdit | None:
        """A set at a strength, worked out for the model."""
        if choice in self._plans:
            self._plans.move_to_end(choice)
            return self._plans[choice]
        one, strength = self.record.sets[choice[0]], choice[1]
        edit = RouterEdit(one.semantics, one.suppress, one.stimulate, strength=strength)
        if len(self._plans) >= NUM_PLANS_KEPT:
            self._plans.popitem(last=False)
        self._plans[choice] = plan_edit(edit, self._checkpoint, self._checkpoint.layout)
        return self._plans[choice]

    def has_parts(self, name: str) -> bool:
        """Whether a set can be done in part. Asked here, since a worker that finds out that it cannot ends the server."""
        if name not in self._has_parts:
            try:
                self.plan((name, 0.5))
                self._has_parts[name] = True
            except MoteError:
                self._has_parts[name] = False
        return self._has_parts[name]

    def choose(self, extra_arguments: Mapping[str, Any]) -> Choice | None:
        """What a request chooses, None for the base.

        Raises:
            ValueError: for a name that the variant does not have, a strength outside 0..1 or of a set that has no parts, and
                edits from outside.
        """
        if EDIT_ARGUMENT in extra_arguments:
            raise ValueError(f"{EDIT_ARGUMENT} cannot be given to this server, expected {NAME_ARGUMENT}")
        if NAME_ARGUMENT not in extra_arguments and STRENGTH_ARGUMENT not in extra_arguments:
            return self.default
        if not self.record.has_dial:
            raise ValueError(f"this variant has no dial, expected no {NAME_ARGUMENT} and no {STRENGTH_ARGUMENT}")
        name = extra_arguments.get(NAME_ARGUMENT, self.record.default)
        known = [BASE_NAME, *self.record.sets]
        if name not in known:
            raise ValueError(f"{NAME_ARGUMENT} is {name!r}, expected one of {', '.join(known)}")
        strength = extra_arguments.get(STRENGTH_ARGUMENT, 1.0)
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise ValueError(f"{STRENGTH_ARGUMENT} is {strength!r}, expected a number of 0 to 1")
        if name == BASE_NAME or strength == 0:
            return None
        if strength < 1 and not self.has_parts(name):
            raise ValueError(
                f"{STRENGTH_ARGUMENT} is {strength!r}, expected 0 or 1 for {name}, whose"
                f" {self.record.sets[name].semantics} has no parts in this model"
            )
        return name, float(strength)

    def read(self, extra_arguments: Mapping[str, Any]) -> tuple[Choice, Any] | None:
        """The edit of a request, as ftri.worker.steps wants it."""
        choice = self.choose(extra_arguments)
        planned = None if choice is None else self.plan(choice)
        return None if choice is None or planned is None else (choice, planned.request)


def check_unserved(extra_arguments: Mapping[str, Any]) -> None:
    """Refuse what a request to a model that is no served variant cannot ask for, which would silently get the base's answer.

    Raises:
        ValueError: for a choice, and for a live edit that ftri's engine did not write.
    """
    for name in (NAME_ARGUMENT, STRENGTH_ARGUMENT):
        if name in extra_arguments:
            raise ValueError(
                f"{name} is given, but the model is no served variant, expected a folder of mote-rewrite --dial"
            )
    given = extra_arguments.get(EDIT_ARGUMENT)
    if given is not None and not (isinstance(given, Mapping) and given.keys() == {"key", "edit"}):
        raise ValueError(f"{EDIT_ARGUMENT} is no edit of this package's engine, expected none")


def salt(choice: Choice | None, given: str | None) -> str | None:
    """The cache salt of a request to a served variant, by which its cached keys and values are found; `given` is its own.

    One that chooses the base has a word before its own too: its salt could be spelled like that of a choice.
    """
    if choice is None:
        return None if given is None else f"mote {BASE_NAME} {given}"
    own = f"mote {choice[0]} {choice[1]!r}"
    return own if given is None else f"{own} {given}"


def dial_of(model_config: Any) -> Dial | None:
    """The dial of the model that vLLM's config names; None where it is no served variant.

    Raises:
        RecordError: for a record that is damaged or of another model.
        HubError: where the model's folder cannot be found.
    """
    from rewriter.hub.models import resolve_model

    if not getattr(model_config.hf_config, "mote_is_served", False):
        return None
    folder = resolve_model(model_config.model, model_config.revision).folder
    assert is_served(Checkpoint.open(folder).config), "the config class marked it"
    return Dial(folder)
