"""The beginning of a response decides what the whole decides; where it cannot, that is counted on people's data."""

import csv
import os
from pathlib import Path

import pytest

from ftri.labels.behavior import label_behavior
from ftri.labels.deciding import decided_label
from ftri.labels.names import Behavior
from ftri.labels.think_formats import think_format

ANSWER = (
    "The wall was opened in November 1989, after weeks of protest in several cities. Crowds crossed it that night. "
    "Within a year the two states were one. Historians still argue about who gave the order, and why."
)
REFUSAL = (
    "I am sorry, but I cannot help with that request. It could put people at risk. Please ask about something else."
)
EMPTY = "<think>\n\n</think>\n\n"


def first_decision(text: str, starts_inside_think: bool = False) -> tuple[int, Behavior | None]:
    """How many characters it took to decide, and what was decided."""
    for length in range(1, len(text) + 1):
        label = decided_label(text[:length], starts_inside_think)
        if label is not None:
            return length, label
    return len(text), None


@pytest.mark.parametrize(
    ("text", "label", "at_most"),
    [
        (f"{EMPTY}{REFUSAL}", Behavior.REFUSED, 70),
        (REFUSAL, Behavior.REFUSED, 50),
        (f"{EMPTY}{ANSWER}", Behavior.ALIGNED, 180),
        (f"<think>\nThe user asks about a wall. It is in Berlin.\n</think>\n\n{ANSWER}", Behavior.REASONED, 20),
        (f"{EMPTY}对不起，我无法回答这个问题。请换一个话题。", Behavior.REFUSED, 40),
    ],
)
def test_decides_early_and_as_the_whole(text: str, label: Behavior, at_most: int) -> None:
    length, decided = first_decision(text)
    assert decided == label == label_behavior(text, "stop")
    assert length <= at_most


@pytest.mark.parametrize("text", ["", "<think>", "<think>\n\n", EMPTY, f"{EMPTY}I am", f"{EMPTY}I am sorry, but I"])
def test_too_little_decides_nothing(text: str) -> None:
    assert decided_label(text) is None


def test_inside_a_block_that_the_template_opened() -> None:
    text = f"Okay, the user asks about a wall. Let me think. It fell in 1989. Crowds came. </think>\n\n{ANSWER}"
    assert first_decision(text, starts_inside_think=True)[1] == Behavior.REASONED
    assert first_decision(REFUSAL, starts_inside_think=True)[1] is None


def test_a_known_format_decides_where_the_marks_alone_would_take_a_thought_for_an_answer() -> None:
    thought = "analysisThe user asks about a wall. It fell in 1989. Crowds came that night. Historians still argue why."
    assert decided_label(thought) == Behavior.ALIGNED
    assert decided_label(thought, think_format=think_format("harmony")) == Behavior.REASONED


def test_what_was_decided_stays_decided() -> None:
    for text in (f"{EMPTY}{REFUSAL}", f"{EMPTY}{ANSWER}"):
        length, label = first_decision(text)
        assert {decided_label(text[:end]) for end in range(length, len(text) + 1)} == {label}


def test_disagreements_on_people_s_data_are_few() -> None:
    data = Path(os.environ.get("MOTE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "xstest/model_completions"
    if not data.is_dir():
        pytest.skip("the XSTest completions are not here (MOTE_DATA)")
    texts = [text for file in sorted(data.glob("*.csv")) for text in completions(file)]
    assert len(texts) > 400
    disagree = saved = total = 0
    for text in texts:
        length, label = coarse_decision(text)
        disagree += (label or label_behavior(text, "stop")) != label_behavior(text, "stop")
        saved += len(text) - length
        total += len(text)
    print(f"{disagree} of {len(texts)} labels differ; {saved / total:.0%} of the characters are not written")
    assert disagree / len(texts) <= 0.02
    assert saved / total > 0.3


def coarse_decision(text: str) -> tuple[int, Behavior | None]:
    """As first_decision, looking every 60 characters."""
    for length in range(60, len(text) + 60, 60):
        label = decided_label(text[:length])
        if label is not None:
            return min(length, len(text)), label
    return len(text), None


def completions(file: Path) -> list[str]:
    """The model's texts of one file of completions."""
    with file.open(newline="") as opened:
        return [row["completion"] for row in csv.DictReader(opened)]
