"""The paper's own numbers (arXiv 2502.11096), shown beside a result for reference only: another model, prompts and judge."""

from __future__ import annotations

from pydantic import BaseModel


class PaperNumber(BaseModel):
    """One published figure, in words as the paper gives it."""

    quantity: str
    value: str


SUPPRESS_REFUSAL = (
    PaperNumber(quantity="756 prompts, 10 experts suppressed: REFUSED -> answered", value="about 40 %"),
    PaperNumber(quantity="756 prompts, 10 experts suppressed: not refused -> REFUSED", value="0"),
    PaperNumber(quantity="756 prompts, 10 random experts: REFUSED -> answered", value="about 9 %"),
    PaperNumber(quantity="756 prompts, 10 random experts: not refused -> REFUSED", value="about 1 %"),
    PaperNumber(quantity="CCP-sensitive 1,360 prompts: REFUSED -> answered", value="52 %"),
    PaperNumber(quantity="CCP-sensitive 1,360 prompts: not refused -> REFUSED", value="about 1.3 %"),
)
STIMULATE_REFUSAL = (
    PaperNumber(quantity="stimulated: ALIGNED -> REFUSED / opposite", value="about 10 % / 3 %"),
    PaperNumber(quantity="stimulated: REASONED leaving, mostly to ALIGNED", value="17 %"),
    PaperNumber(quantity="stimulated: REASONED -> REFUSED", value="3.6 %"),
)
LANGUAGE = (
    PaperNumber(quantity="thinking in English -> Chinese, tuned", value="43 of 400 (10.75 %)"),
    PaperNumber(quantity="thinking in English -> Chinese, 10 unrelated experts", value="1 of 400"),
)
# Category -> (suppressed, original).
MT_BENCH = {
    "coding": (8.56, 7.44),
    "extraction": (8.95, 8.88),
    "humanities": (9.08, 9.10),
    "math": (9.35, 9.45),
    "reasoning": (8.48, 8.17),
    "roleplay": (9.22, 8.95),
    "writing": (9.13, 9.07),
}
NOT_GIVEN = "The paper gives no temperature, number of samples, refusal rule or judge."


def numbers_for(axis: str, direction: str) -> list[PaperNumber]:
    """The figures that stand beside a result of this kind."""
    if axis == "language":
        return list(LANGUAGE)
    return list(SUPPRESS_REFUSAL if direction == "leave" else STIMULATE_REFUSAL)
