"""The parts of a model card: front matter, and sections between markers that are found again and replaced. Text in, text out."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rewriter.errors import printable, quoted

RESULTS_BLOCK = "mote-eval"
SAFETY_BLOCK = "mote-safety"
SERVE_BLOCK = "mote-serve"

# libyaml's where PyYAML was built with it: the front matter of some cards has megabytes of scores.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_FRONT_MATTER_CHARACTERS = 4_000_000
MAX_FRONT_MATTER_DEPTH = 32
FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Split a card into its front matter and its body; a card without front matter gives an empty dict.

    Raises:
        ValueError: the front matter is not YAML, or not a mapping.
    """
    match = FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    data = _load_front_matter(match.group(1))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ValueError(f"the card's front matter is a {type(data).__name__}, expected a mapping")
    if data.get("tags") is not None:
        tags = [data["tags"]] if isinstance(data["tags"], str) else data["tags"]
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError(f"the card's tags are {quoted(tags)}, expected a list of words")
        data["tags"] = tags
    return data, text[match.end() :]


def _load_front_matter(text: str) -> Any:
    """The YAML of a card's front matter. It may be a stranger's, so what grows when it is read is refused before it is.

    Raises: ValueError in one line, when it is not YAML, too long, nested deeply, or has aliases (which a few lines can make
    gigabytes of).
    """
    if len(text) > MAX_FRONT_MATTER_CHARACTERS:
        raise ValueError(
            f"the card's front matter has {len(text)} characters, expected at most {MAX_FRONT_MATTER_CHARACTERS}"
        )
    try:
        depth = 0
        for event in yaml.parse(text, Loader=YAML_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("the card's front matter has a YAML alias, expected none")
            if depth > MAX_FRONT_MATTER_DEPTH:
                raise ValueError(f"the card's front matter is nested more than {MAX_FRONT_MATTER_DEPTH} deep")
        return yaml.load(text, Loader=YAML_LOADER)  # both are safe loaders
    except yaml.YAMLError as error:
        words = printable(" ".join(str(error).split()))[:200]
        raise ValueError(f"the card's front matter is not YAML: {words}") from None
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the card's front matter has a value that YAML cannot give ({error})") from None


def join_card(front_matter: Mapping[str, Any], body: str) -> str:
    """Put front matter and body together into a card."""
    header = yaml.safe_dump(dict(front_matter), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{header}---\n\n{body.lstrip()}"


def block(name: str, text: str) -> str:
    """Wrap text in the comment markers by which `replace_block` finds it again."""
    return f"<!-- {name}:start -->\n{text.strip()}\n<!-- {name}:end -->"


def find_block(card: str, name: str) -> str | None:
    """Return the text between a block's markers, or None if the card has no such block."""
    match = _block_pattern(name).search(_parted(card)[1])
    return match.group(1).strip() if match else None


def replace_block(card: str, name: str, text: str, heading: str | None = None) -> str:
    """Return the card with the named block's text replaced; if absent, append it under heading.

    Everything outside the markers stays as it is, byte for byte. The front matter has no blocks: what it carries over from
    the base's card (its terms, its licence's name) may be a stranger's words, and may be these markers.

    Raises:
        ValueError: the card's body has more than one such block, or only one of the two markers.
    """
    head, body = _parted(card)
    num_starts, num_ends = body.count(f"<!-- {name}:start -->"), body.count(f"<!-- {name}:end -->")
    if num_starts == num_ends == 0:
        title = f"## {heading}\n\n" if heading else ""
        return f"{card.rstrip()}\n\n{title}{block(name, text)}\n"
    if num_starts != 1 or num_ends != 1 or _block_pattern(name).search(body) is None:
        raise ValueError(f"the card has {num_starts} start and {num_ends} end markers of {name}, expected one of each")
    return head + _block_pattern(name).sub(lambda _: block(name, text), body)


def replace_results(card: str, results: str) -> str:
    """Return the card with mote-eval's section replaced by results (Markdown without a level-2 heading)."""
    return replace_block(card, RESULTS_BLOCK, results, "Results")


def replace_safety(card: str, safety: str) -> str:
    """Return the card with the section on refusals that protect people replaced."""
    return replace_block(card, SAFETY_BLOCK, safety, "Refusals that protect people")


def replace_serve_line(card: str, serve_line: str) -> str:
    """Return the card with the serving command replaced, for example once the repo's name is known."""
    return replace_block(card, SERVE_BLOCK, code(serve_line), "Serve it")


def _parted(card: str) -> tuple[str, str]:
    """A card's front matter with its dashes, and all behind it."""
    match = FRONT_MATTER.match(card)
    end = match.end() if match is not None else 0
    return card[:end], card[end:]


def _block_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {re.escape(name)}:start -->(.*?)<!-- {re.escape(name)}:end -->", re.DOTALL)


def code(line: str) -> str:
    return f"```bash\n{line}\n```"
