"""The words for what an edit does to an expert, and what each word means: the one place of the project that spells them.

A further semantics is a further word here (in `Semantics`, and in `CheckpointSemantics` if a checkpoint can hold it) with its
`MEANINGS` row; mypy then names the places that must know what to do with it.
"""

from typing import Final, Literal, get_args

Semantics = Literal["reroute", "reroute (centroid)", "drop", "drop-renorm"]
CheckpointSemantics = Literal["reroute", "reroute (centroid)", "drop"]
"""What a checkpoint can hold for stock runtimes."""
AskedSemantics = Literal["auto", "reroute", "drop"]
"""What mote-rewrite is asked for; a reroute becomes the one that the family's routers can hold."""

AUTO: Final = "auto"
REROUTE: Final = "reroute"
CENTROID: Final = "reroute (centroid)"
DROP: Final = "drop"
DROP_RENORM: Final = "drop-renorm"

SEMANTICS: tuple[Semantics, ...] = (REROUTE, DROP, DROP_RENORM)
"""What a running engine can do to any router: CENTROID stands for a reroute only where a checkpoint has no bias."""
BIAS_FREE_SEMANTICS: tuple[Semantics, ...] = get_args(Semantics)

Action = Literal["suppress", "stimulate"]
SUPPRESS: Final = "suppress"
STIMULATE: Final = "stimulate"
ACTIONS: tuple[Action, ...] = get_args(Action)


# As Markdown for a model card.
MEANINGS: dict[Semantics, str] = {
    REROUTE: (
        "**Reroute.** The router's selection bias of the expert is changed, so a suppressed expert is never selected "
        "and the next-best expert of that layer takes its place; a stimulated expert is always selected and keeps the "
        "weight that the router gives it. This is not the suppression of the paper (arXiv 2502.11096), in which no "
        "other expert takes the place."
    ),
    CENTROID: (
        "**Reroute (centroid).** The router has no bias, so the expert's row of the router's weight is the mean of the "
        "rows of the experts that are not suppressed, and its `down_proj` is zero. Its logit is then the mean logit of "
        "the others: on no input is it ranked first, its share of the softmax is at most one in the number of experts, "
        "and where it is selected all the same it adds nothing. That it is never selected is proved for routers that "
        "select one expert; for others it is a matter of measurement (`mote-verify --traces`). The next-best expert "
        "steps in wherever it is not selected."
    ),
    DROP: (
        "**Drop.** The expert's `down_proj` is zero. The router still selects the expert and still gives it its share "
        "of the weight, but its output adds nothing; no other expert takes its place, and the others are not scaled "
        "up. This is not the suppression of the paper (arXiv 2502.11096), which renormalises the remaining weights."
    ),
    DROP_RENORM: (
        "**Drop-renorm.** The suppressed expert's weight is zero and the weights of the other selected experts are "
        "renormalised; no other expert takes its place. This is the suppression of the paper (arXiv 2502.11096)."
    ),
}

_BY_THE_BIAS = (
    "A stimulated expert is always selected and keeps the weight that the router gives it. This is not the stimulation of the "
    "paper (arXiv 2502.11096), which gives it the largest weight."
)
SERVED_MEANINGS: dict[Semantics, dict[Action, str]] = {
    REROUTE: {
        SUPPRESS: (
            "**Reroute.** A suppressed expert is never selected, and the next-best expert of that layer takes its place. This is "
            "not the suppression of the paper (arXiv 2502.11096), in which no other expert takes the place."
        ),
        STIMULATE: f"**Reroute.** {_BY_THE_BIAS}",
    },
    CENTROID: {SUPPRESS: f"The server routes as a checkpoint of this kind does. {MEANINGS[CENTROID]}", STIMULATE: ""},
    DROP: {
        SUPPRESS: (
            "**Drop.** A suppressed expert is selected and keeps its share of the weight, but its output adds nothing; no other "
            "expert takes its place, and the others are not scaled up. This is not the suppression of the paper (arXiv "
            "2502.11096), which renormalises the remaining weights."
        ),
        STIMULATE: _BY_THE_BIAS,
    },
    DROP_RENORM: {
        SUPPRESS: MEANINGS[DROP_RENORM],
        STIMULATE: (
            "**Drop-renorm.** A stimulated expert that is not selected takes the place of the selected one with the lowest "
            "weight; it gets the largest weight that the router gave, and the weights are renormalised. This is the "
            "stimulation of the paper (arXiv 2502.11096)."
        ),
    },
}
"""What a server does to experts whose weights stay as they are, by action, as Markdown; empty where no router can do it."""

SHIFTED: Final = "reroute with a finite shift"
"""What a reroute is called whose suppressed experts keep a bias from which they are still selected, only less often."""
SHIFTED_MEANING: Final = (
    "**Reroute with a finite shift.** A finite number is added to the router's selection bias of the expert, between none and "
    "the minus infinity of a whole reroute. A token still selects the expert where its score leads by more than the shift, with "
    "the weight that the router gives it; elsewhere the next-best expert of that layer takes its place. It is weaker than a "
    "whole reroute, and is not the suppression of the paper (arXiv 2502.11096)."
)
"""As Markdown for a model card."""

PARTIAL: Final = "drop in part"
"""What a drop is called that keeps a part of a suppressed expert's output: 1 - strength of it."""
PARTIAL_MEANING: Final = (
    "**Drop in part.** The expert's `down_proj` is multiplied by 1 - strength. The router still selects the expert and gives it "
    "its share of the weight, of which that part is added; no other expert takes its place, and the others are not scaled up, as "
    "the suppression of the paper (arXiv 2502.11096), done in part, would do."
)
"""As Markdown for a model card."""
GAIN: Final = "gain"
"""What the number is called that a stimulated expert's output is multiplied with in a checkpoint."""
GAIN_MEANING: Final = (
    "**Gain.** A stimulated expert's `down_proj` is multiplied by a number, its gain, in the place of the largest weight, which "
    "the stimulation of the paper (arXiv 2502.11096) gives it on each token; the router's own is lower. One number stands for "
    "all tokens, so that some come closer to the paper's weight and others may overshoot it, and the other selected experts "
    "keep their weights, which the paper lowers."
)
"""As Markdown for a model card."""
