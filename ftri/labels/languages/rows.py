"""The table of languages: one row each. A language is added by a file with its row, and its name here."""

from __future__ import annotations

from ftri.labels.languages.arabic import ARABIC
from ftri.labels.languages.chinese import CHINESE
from ftri.labels.languages.english import ENGLISH
from ftri.labels.languages.french import FRENCH
from ftri.labels.languages.german import GERMAN
from ftri.labels.languages.italian import ITALIAN
from ftri.labels.languages.japanese import JAPANESE
from ftri.labels.languages.korean import KOREAN
from ftri.labels.languages.language import Language
from ftri.labels.languages.portuguese import PORTUGUESE
from ftri.labels.languages.russian import RUSSIAN
from ftri.labels.languages.spanish import SPANISH

LANGUAGES: tuple[Language, ...] = (
    ENGLISH,
    CHINESE,
    GERMAN,
    FRENCH,
    SPANISH,
    PORTUGUESE,
    ITALIAN,
    RUSSIAN,
    JAPANESE,
    KOREAN,
    ARABIC,
)
