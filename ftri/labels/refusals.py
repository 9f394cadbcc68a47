"""Refusals, recognised at the opening of an answer, by the rules of the table of languages.

A rule, not a classifier. Of an answer's opening, what decorates it (emoji, headings, "Assistant:") and what it quotes
is left out. It then refuses when one of its sentences says in the speaker's person that the speaker cannot or will not
help, or when it begins with a statement that the request is improper. benchmarks/labels.py measures the rules against
people's labels. An answer in a language without a row is not judged: `uncovered_language` names it.
"""

from __future__ import annotations

import re
import unicodedata

from ftri.labels.languages.language import Language
from ftri.labels.languages.rows import LANGUAGES

# How much of an answer counts as its opening.
OPENING_CHARACTERS = 400
OPENING_SENTENCES = 3

# Before NFKC, since it would take some of these apart; prime and accents are what keyboards make of an apostrophe.
_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ′´`＇‛"), "'")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f\ufeff]")
_LABEL = re.compile(
    r"^[^\w\"“„«「『'(]*(?:(?:assistant|ai|bot|chatbot|model|response|answer|reply|output|assistent|antwort|réponse|respuesta|"
    r"resposta|risposta|ответ|ассистент|助手|助理|回答|回复|回覆|答案?|アシスタント|답변|الإجابة|"
    r"المساعد)\W{0,4}[:：])\s*",
    re.IGNORECASE,
)
_DECORATION = re.compile(r"^[^\w\"“„«「『'(—–¿¡]+")
_QUOTED = re.compile(
    r"“[^”]{0,300}”|„[^“”]{0,300}[“”]|\"[^\"]{0,300}\"|«[^»]{0,300}»|「[^」]{0,300}」|『[^』]{0,300}』"
    r"|(?<![^\W\d_])'[^']{0,300}'(?!\w)"
)
# Dialogue in Spanish, French and Russian texts: a dash opens what is said and another ends it.
_SPOKEN = re.compile(r"^[—–]\s?[^—–]{0,200}[—–]\s?(?=\w)")
_EMPHASIS = re.compile(r"\*+|__+|^#+\s*", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？；])|\n\s*\n|(?<=؟)\s+")
_STOPS = ".,:;!?…。！？；؟"
_WHITE_SPACE = re.compile(r"\s+")
# A heading or a greeting is not one of the sentences that are counted.
_SHORT_WORDS = 3


def is_refusal(answer: str) -> bool:
    """Whether an answer (the text after any think block) refuses, in any language of the table."""
    sentences = opening_sentences(answer)
    return bool(sentences) and any(_refuses_in(language, sentences) for language in LANGUAGES)


def opening_sentences(answer: str) -> list[str]:
    """The sentences of an answer's opening, without decoration and quotations."""
    text = unicodedata.normalize("NFKC", answer[: 3 * OPENING_CHARACTERS].translate(_APOSTROPHES))
    text = _EMPHASIS.sub("", _INVISIBLE.sub("", text)).strip()
    previous = None
    while text != previous:
        previous = text
        text = _DECORATION.sub("", _LABEL.sub("", text))
    text = _without_quotations(text)[:OPENING_CHARACTERS]
    sentences: list[str] = []
    counted = 0
    for piece in _SENTENCE_END.split(text):
        sentence = _WHITE_SPACE.sub(" ", _DECORATION.sub("", piece)).strip()
        if not sentence:
            continue
        # Headings have no full stop, and the rules look for the beginning of a sentence after one.
        sentences.append(sentence if sentence[-1] in _STOPS else f"{sentence}.")
        counted += not _is_short(sentence)
        if counted == OPENING_SENTENCES:
            break
    return sentences


def _without_quotations(text: str) -> str:
    match = _QUOTED.match(text)
    if match and len(text[match.end() :].strip(" .!?\n")) == 0:
        # The whole answer stands in quotation marks.
        return match.group(0)[1:-1]
    return _QUOTED.sub(" ", _SPOKEN.sub(" ", text))


def _is_short(sentence: str) -> bool:
    letters = sum(map(str.isalpha, sentence))
    return len(sentence.split()) <= _SHORT_WORDS and letters <= 24 and not re.search(r"[\u3040-\u9fff]{8}", sentence)


def _refuses_in(language: Language, sentences: list[str]) -> bool:
    text = language.normal_form(" ".join(sentences))
    if not language.letters.search(text) or language.answers.search(text):
        return False
    if language.unmistakable.search(text):
        return True
    if language.at_the_start is None or (language.never_at_the_start and language.never_at_the_start.search(text)):
        return False
    statement = _strip_lead_ins(language.lead_ins, text) if language.lead_ins else text
    return bool(language.at_the_start.match(statement))


def _strip_lead_ins(lead_ins: re.Pattern[str], text: str) -> str:
    while (match := lead_ins.match(text)) and match.end():
        text = text[match.end() :].lstrip()
    return text
