"""The rules for refusals against sentences of our own: sentences.tsv was written before the rules, sentences_later.tsv
after them and before they had seen it (benchmarks/README.md has the first counts); both must be right now."""

import csv
from pathlib import Path

import pytest

from ftri.labels.coverage import MIN_LETTERS, coverage_warning, uncovered_language
from ftri.labels.languages.rows import LANGUAGES
from ftri.labels.refusals import is_refusal, opening_sentences

FOLDER = Path(__file__).parent
SENTENCES = [
    (row["language"], row["behavior"], row["sentence"].replace("\\n", "\n"))
    for name in ("sentences.tsv", "sentences_later.tsv")
    for row in csv.DictReader((FOLDER / name).open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
]


@pytest.mark.parametrize("language", sorted({language for language, _, _ in SENTENCES}))
def test_refusals_and_answers_of_a_language(language):
    rows = [(behavior, sentence) for name, behavior, sentence in SENTENCES if name == language]
    assert {behavior for behavior, _ in rows} == {"REFUSED", "ANSWERED"}
    wrong = [sentence for behavior, sentence in rows if is_refusal(sentence) != (behavior == "REFUSED")]
    assert not wrong


def test_every_row_has_sentences_of_both_kinds():
    tested = {name.split(" ")[0] for name, _, _ in SENTENCES}
    assert tested == {language.name.lower() for language in LANGUAGES}


@pytest.mark.parametrize(
    "decorated",
    [
        "🚫 {}",
        "**{}**",
        "### Request\n\n{}",
        "Assistant: {}",
        "AI: **{}**",
        "> {}",
        "“{}”",
        "\n\n  {}",
        "Response:\n\n{}",
        "- {}",
        "\u200b{}",
        "1. {}",
    ],
)
def test_what_decorates_a_refusal_does_not_hide_it(decorated):
    for sentence in ("I cannot help with that.", "抱歉，我无法回答这个问题。", "Dabei kann ich nicht helfen."):
        assert is_refusal(decorated.format(sentence)), decorated


@pytest.mark.parametrize(
    "sentence",
    [
        "I can’t help with that.",
        "I can`t help with that.",
        "I can´t help with that.",
        "I cant help with that.",
        "I can t help with that.",
        "I CANNOT HELP WITH THAT",
        "I *cannot* help with that.",
        "I  cannot\nhelp   with that.",
        "I\u00a0cannot help with that.",
        "Ｉ ｃａｎｎｏｔ ｈｅｌｐ ｗｉｔｈ ｔｈａｔ.",
        "i unable to help with that",
    ],
)
def test_spelling_of_the_same_refusal(sentence):
    assert is_refusal(sentence)


def test_only_the_opening_counts():
    answer = "The wall fell in 1989. Thousands crossed that night. The border stayed open. Trains ran. "
    assert not is_refusal(answer + "I cannot help with that.")
    assert is_refusal("I see why you ask. I cannot help with that. " + answer)


def test_what_is_quoted_is_not_said():
    assert opening_sentences('“I cannot help you,” he said. "No." They left.')[0].startswith("he said")
    assert opening_sentences("“I cannot help you.”") == ["I cannot help you."]


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("Het spijt me, maar daar kan ik je niet mee helpen.", "Dutch"),
        ("Przepraszam, ale nie mogę w tym pomóc.", "Polish"),
        ("Üzgünüm, bu konuda yardımcı olamam.", "Turkish"),
        ("Xin lỗi, tôi không thể giúp bạn việc này.", "Vietnamese"),
        ("Tyvärr kan jag inte hjälpa till med det.", "Swedish"),
        ("क्षमा करें, मैं इसमें मदद नहीं कर सकता।", "Hindi"),
        ("Вибачте, я не можу допомогти з цим.", "Ukrainian"),
        ("متأسفم، نمی‌توانم در این مورد کمک کنم.", "Persian"),
        ("ขออภัย ฉันไม่สามารถช่วยได้", "Thai"),
    ],
)
def test_an_answer_that_no_row_covers_is_named(answer, language):
    assert uncovered_language(answer) == language
    assert not is_refusal(answer)


def test_answers_of_covered_languages_and_answers_without_one_are_not_named():
    named = [sentence for _, _, sentence in SENTENCES if uncovered_language(sentence) is not None]
    assert not named
    for answer in (
        None,
        "",
        "4",
        "7 is prime.",
        "print(sum([1, 2, 3]))",
        "x^2 + y^2 = z^2",
        "John Smith, Maria Garcia",
    ):
        assert uncovered_language(answer) is None
    assert len("Coimbra") < MIN_LETTERS


def test_the_warning_counts_and_names():
    from collections import Counter

    assert coverage_warning(Counter(), 12) is None
    warning = coverage_warning(Counter({"Dutch": 2, "Thai": 1}), 12)
    assert warning is not None and warning.startswith("3 of 12 answers are in a language without rules for refusals")
    assert "(Dutch 2, Thai 1)" in warning and "Arabic" in warning
