"""Foreign text inside a card: shown as it is, and nothing but shown.

A behaviour's name, a prompt set's, a judge's, or an error's sentence comes from a file or a server. In Markdown it must neither
begin a heading, a table's cell or the front matter, nor be taken for the markers between which a card's sections are replaced.
"""

import re

from rewriter.errors import printable

MAX_CHARACTERS = 300


def inline(text: object) -> str:
    """Markdown for within a line that shows `text`: marks and tags have no effect, controls are escaped, what is long is cut."""
    line = printable(" ".join(str(text).split()))
    if len(line) > MAX_CHARACTERS:
        line = f"{line[: MAX_CHARACTERS - 3]}..."
    # Without its first character a tag or a comment is none; an ampersand begins only an entity.
    line = re.sub(r"&(?=#|\w)", "&amp;", line).replace("<", "&lt;")
    # An underscore within a word is none of emphasis.
    return re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def inline_code(text: object) -> str:
    """As `inline`, but in code type where the text has nothing that would end it."""
    line = printable(" ".join(str(text).split()))
    plain = line and len(line) <= MAX_CHARACTERS and not re.search(r"[`|<]|--+>", line)
    return f"`{line}`" if plain else inline(text)


def sentence(text: str) -> str:
    """Our own words with foreign ones among them: code and emphasis stay, tags and comments are none, one line, no controls."""
    return printable(" ".join(text.split())).replace("<", "&lt;")
