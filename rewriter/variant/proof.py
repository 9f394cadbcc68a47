"""What the bytes of a variant prove of its suppressed experts on any input, and what they do not: for mote-verify. Pure.

mote-verify works the plan out anew on the base and finds its bytes in the variant; these are the consequences.
"""

from dataclasses import dataclass

from rewriter.edit.record import MEAN_ROW, SCALED_OUTPUT, SHIFTED_ROW, ZERO_OUTPUT, VariantRecord
from rewriter.families.family import RouterLayout
from rewriter.semantics import PARTIAL, SHIFTED, SUPPRESS


@dataclass(frozen=True)
class Proof:
    """Sentences on the suppressed experts."""

    proved: tuple[str, ...]
    not_proved: tuple[str, ...]


def what_is_proved(record: VariantRecord, layout: RouterLayout) -> Proof:
    """What holds of a variant whose bytes are those of its record, and what only traces can tell."""
    suppressed = [one for one in record.edits_in_force() if one.action == SUPPRESS]
    values = {one.value for one in suppressed}
    proved: list[str] = []
    not_proved: list[str] = []
    if any(one.bias_shift is not None for one in suppressed):
        proved.append(
            f"{SHIFTED}: the bias of such an expert is the base's plus the shift that the record states, rounded to its type; it"
            " ranks that much lower on any input, and the next-best expert steps in where another then leads"
        )
        not_proved.append(
            f"{SHIFTED}: how often such an expert is still selected; traces of this variant count it (--traces)"
        )
    if any(one.edits_bias and one.bias_shift is None for one in suppressed):
        proved.append(
            "reroute: the bias of a suppressed expert lies below what any score could make up for, so it is never selected,"
            " and the next-best expert steps in (on the runtimes called safe below)"
        )
    if SHIFTED_ROW in values:
        proved.append(
            "reroute: behind its norm, a suppressed expert's router row gives a logit below every survivor's on any input, so it"
            " is never selected, and the next-best expert steps in"
        )
        not_proved.append(
            "that the rounding of activations never makes up for the row's distance, eight deviations or more"
        )
    if MEAN_ROW in values:
        proved.append(
            "reroute (centroid): a suppressed expert's router row is the mean of the survivors' and its output is zero, so on any"
            " input it adds nothing and is never ranked first"
        )
        if layout.top_k == 1:
            proved.append("reroute (centroid): the router selects one expert, so a suppressed one is never selected")
        else:
            few = f"fewer than {layout.top_k} survivors lie above their mean"
            selects = "expected where" if record.approximate else "possible only where"
            not_proved.append(
                f"that a suppressed expert is never selected: it is {selects} {few}, and then takes a place and a share of the"
                " weights; traces of this variant count it (--traces)"
            )
    if ZERO_OUTPUT in values:
        proved.append(
            "drop: the output of a suppressed expert is zero, so it adds nothing; it is selected as in the base and keeps its"
            " share"
        )
    if SCALED_OUTPUT in values:
        proved.append(
            f"{PARTIAL}: the output of such an expert is the base's times 1 - the strength that the record states, rounded to the"
            " type that it is stored in; it is selected as in the base and keeps its share"
        )
    if any(one.gain is not None for one in record.edits_in_force()):
        proved.append(
            "gain: the output of such a stimulated expert is the base's times the gain that the record states, rounded to the"
            " type that it is stored in; the weight that the router gives it is its own"
        )
        not_proved.append("gain: how far that is from the paper's largest weight, which differs from token to token")
    return Proof(tuple(proved), tuple(not_proved))
