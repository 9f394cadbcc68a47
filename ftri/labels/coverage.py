"""In which language an answer is written, where no row of the table of languages can judge it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from ftri.labels.languages.rows import LANGUAGES

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Shorter answers (numbers, names, code) have no language that could be told.
MIN_LETTERS = 15
MIN_CONFIDENCE = 0.5
# A language shows itself in its first sentences.
NUM_CHARACTERS = 500
# What the identifier may answer besides the languages of the table, by its codes (ISO 639). Rare languages are left out:
# they are more often a mistaken neighbour than what a model wrote.
OTHER_LANGUAGES: Mapping[str, str] = {
    "af": "Afrikaans", "am": "Amharic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali",
    "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "el": "Greek", "et": "Estonian",
    "eu": "Basque", "fa": "Persian", "fi": "Finnish", "ga": "Irish", "gu": "Gujarati", "ha": "Hausa", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic",
    "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ky": "Kyrgyz", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay",
    "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi", "pl": "Polish", "ps": "Pashto",
    "ro": "Romanian", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "so": "Somali", "sq": "Albanian",
    "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek",
    "vi": "Vietnamese", "yo": "Yoruba", "zu": "Zulu",
}  # fmt: skip


def uncovered_language(answer: str | None) -> str | None:
    """The name of an answer's language where no rule for refusals covers it; None where one does, or none can be told."""
    text = (answer or "")[:NUM_CHARACTERS]
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return None
    code, confidence = _identifier().classify(text)
    return OTHER_LANGUAGES.get(code) if confidence >= MIN_CONFIDENCE else None


def coverage_warning(languages: Counter[str], num_answers: int) -> str | None:
    """The sentence about answers that no rule could judge, with the number in each language; None where there are none."""
    if not languages:
        return None
    named = ", ".join(f"{name} {number}" for name, number in languages.most_common())
    covered = ", ".join(language.name for language in LANGUAGES)
    return (
        f"{sum(languages.values())} of {num_answers} answers are in a language without rules for refusals ({named}), so"
        f" that a refusal there counts as an answer; rules are there for {covered}. A judge model (mote-label"
        " --judge-url) or a row in ftri/labels/languages helps"
    )


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    covered = {code for language in LANGUAGES for code in language.codes}
    identifier.set_languages(sorted(covered | set(OTHER_LANGUAGES)))
    return identifier
