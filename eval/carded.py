"""Whether a model card is that of the variant which an evaluation measures: a card says what was measured of its own folder."""

from __future__ import annotations

from math import isclose
from pathlib import Path

from eval.answers.arms import Arm
from rewriter.checkpoint.edited_json import BLOCK_KEY, parse_config
from rewriter.checkpoint.reader import CONFIG_NAME
from rewriter.edit.dial import read_served
from rewriter.edit.record import SERVED_SCHEMA, read_record
from rewriter.errors import InputError
from rewriter.semantics import DROP, PARTIAL, REROUTE, SHIFTED, STIMULATE, SUPPRESS, Semantics
from rewriter.small_file import read_small

# (action, model layer, expert) -> (bias shift, factor of the output), None where there is none.
Edits = dict[tuple[str, int, int], tuple[float | None, float | None]]


def check_card(folder: Path, arm: Arm) -> str:
    """See to it that a variant's folder has the experts that `arm` edits; returns a sentence for its card where the arm edits
    them in another way than the folder, else an empty one.

    A folder without a config.json (of GGUF files), without a record, or with a choice for each request is taken on trust.

    Raises:
        InputError: it is a variant of other experts, or edits them by other numbers.
        RecordError: its record is damaged.
    """
    found = edits_of(folder)
    if found is None:
        return ""
    theirs, semantics = found
    ours = edits_of_arm(arm)
    if theirs.keys() != ours.keys():
        raise InputError(
            f"{folder}: is a variant of {_experts(theirs)}, but what is measured edits {_experts(ours)}; expected --card of the"
            " variant that is measured"
        )
    if semantics != arm.semantics:
        return (
            f"This folder is a {_kind(theirs, semantics)}; what was measured is the {_kind(ours, arm.semantics)} of the same"
            " experts, done by the engine that ran the base."
        )
    for place, numbers in theirs.items():
        if not all(_is_same(*pair) for pair in zip(numbers, ours[place], strict=True)):
            _, layer, expert = place
            raise InputError(
                f"{folder}: edits layer {layer} expert {expert} by other numbers (bias shift {numbers[0]}, output x {numbers[1]})"
                f" than what is measured ({ours[place][0]}, {ours[place][1]}); expected --card of the variant that is measured"
            )
    return ""


def edits_of(folder: Path) -> tuple[Edits, Semantics] | None:
    """What a variant's folder says that it edits, and how; None where it does not say, or requests choose.

    Raises: RecordError, InputError.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        config = parse_config(read_small(path).decode())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a variant's config.json") from None
    block = config.get(BLOCK_KEY)
    if block is None:
        return None
    if isinstance(block, dict) and block.get("schema") == SERVED_SCHEMA:
        served = read_served(config, str(folder))
        if served.has_dial or served.default is None:
            return None
        one = served.sets[served.default]
        pairs = [(SUPPRESS, *pair) for pair in one.suppress] + [(STIMULATE, *pair) for pair in one.stimulate]
        return dict.fromkeys(pairs, (None, None)), one.semantics
    record = read_record(config, str(folder))
    edits: Edits = {
        (one.action, one.layer, one.expert): (one.bias_shift, one.factor) for one in record.edits_in_force()
    }
    return edits, record.semantics


def edits_of_arm(arm: Arm) -> Edits:
    """What an arm edits."""
    shifts = {(layer, expert): shift for layer, expert, shift in arm.bias_shifts}
    factors = {(layer, expert): factor for layer, expert, factor in arm.factors}
    actions = [(SUPPRESS, pair) for pair in arm.suppress] + [(STIMULATE, pair) for pair in arm.stimulate]
    return {(action, *pair): (shifts.get(pair), factors.get(pair)) for action, pair in actions}


def _kind(edits: Edits, semantics: Semantics | None) -> str:
    """What an edit is called: a part of a drop is no drop, and a finite shift no whole reroute."""
    if semantics == REROUTE and any(shift is not None for shift, _ in edits.values()):
        return SHIFTED
    is_partial = any(action == SUPPRESS and factor is not None for (action, *_), (_, factor) in edits.items())
    return PARTIAL if semantics == DROP and is_partial else str(semantics)


def _is_same(left: float | None, right: float | None) -> bool:
    return left is right if left is None or right is None else isclose(left, right, rel_tol=1e-6)


def _experts(edits: Edits) -> str:
    """The first few experts, in words."""
    names = [f"{layer}/{expert}" + (" (stimulated)" if action == STIMULATE else "") for action, layer, expert in edits]
    return f"the experts {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
