"""The card of a variant as it is published: with the repo's name, the measurements at hand and the base's terms."""

import shlex
from collections.abc import Callable
from pathlib import Path

from rewriter.edit.record import VariantRecord
from rewriter.errors import HubError, InputError
from rewriter.hub.errors import hub_errors
from rewriter.push.files import LocalFile, file_in_memory
from rewriter.small_file import MAX_CARD_BYTES, read_small
from rewriter.variant.card import CARRIED_KEYS
from rewriter.variant.card_parts import (
    find_block,
    join_card,
    replace_block,
    replace_results,
    replace_safety,
    replace_serve_line,
    split_card,
)

CARD_NAME = "README.md"
RESULTS_NAME = "mote-eval.md"
SAFETY_NAME = "mote-safety.md"


NO_WEIGHTS = (
    "This repo holds a recipe, no weights: the experts, the values and the hashes of the base's tensors. MoTE applies it "
    "to the base that you have, and refuses any other base."
)


def pushed_card(
    folder: Path, record: VariantRecord, repo_id: str, branch: str, say: Callable[[str], None]
) -> LocalFile:
    """Return the card to publish: README.md with the serving command for the repo, mote-eval's sections if beside it.

    Terms that the folder's card lacks (a base without README.md on disk) are taken from the base's card on the Hub.

    Raises:
        InputError: the folder has no card, or an invalid one.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        raise InputError(f"'{folder}' lacks {CARD_NAME}, expected a variant; mote-rewrite -o FOLDER makes one")
    try:
        text = read_small(path, MAX_CARD_BYTES).decode()
        text = complete_terms(text, record, say)
        text = replace_serve_line(text, serve_line_for(find_block(text, "mote-serve"), repo_id, branch))
        for name, put in ((RESULTS_NAME, replace_results), (SAFETY_NAME, replace_safety)):
            if (folder / name).is_file():
                text = put(text, read_small(folder / name, MAX_CARD_BYTES).decode())
        check_card(text)
    except ValueError as error:
        raise InputError(f"'{path}' is no valid model card: {' '.join(str(error).split())}") from error
    return file_in_memory(CARD_NAME, text.encode())


def recipe_card(card: str, repo_id: str, revision: str) -> str:
    """Return a variant's card turned into its recipe's, for a branch of a repo."""
    data, body = split_card(card)
    tags = [*(data.get("tags") or []), "mote-recipe"]
    data |= {"tags": list(dict.fromkeys(tags)), "library_name": "mote"}
    folder = repo_id.rsplit("/", 1)[-1]
    branch = "" if revision == "main" else f"@{revision}"
    rewrite = shlex.join(["mote-rewrite", "--recipe", f"{repo_id}{branch}", "-o", f"./{folder}"])
    commands = f"{rewrite}\n{shlex.join(['vllm', 'serve', f'./{folder}'])}"
    text = join_card(data, body)
    return replace_block(text, "mote-serve", f"{NO_WEIGHTS}\n\n```bash\n{commands}\n```", "Use it")


def serve_line_for(present: str | None, repo_id: str, branch: str) -> str:
    """Return the serving command with its model replaced by the repo, other options kept."""
    lines = [line for line in (present or "").splitlines() if line.startswith("vllm serve ")]
    options = shlex.split(lines[0])[3:] if lines else []
    revision = [] if branch == "main" else ["--revision", branch]
    return shlex.join(["vllm", "serve", repo_id, *revision, *options])


def complete_terms(text: str, record: VariantRecord, say: Callable[[str], None]) -> str:
    """Return the card with the licence and access terms of the base's card on the Hub, where it has none itself.

    Raises:
        ValueError: a card's front matter is not YAML.
    """
    data, body = split_card(text)
    base_model = record.base_model
    if not base_model or "license" in data:
        return text
    base_card = _fetch_card(base_model, record.base_revision, say)
    if base_card is None:
        return text
    base_data, _ = split_card(base_card)
    carried = {key: base_data[key] for key in CARRIED_KEYS if base_data.get(key) is not None and key not in data}
    return join_card({**carried, **data}, body) if carried else text


def check_card(text: str) -> None:
    """Check a card with huggingface_hub's own classes.

    Raises:
        ValueError: the front matter is missing, or the Hub would refuse it.
    """
    from huggingface_hub import ModelCard

    data, _ = split_card(text)
    if not data:
        raise ValueError("it has no front matter between --- lines")
    ModelCard(text)


def _fetch_card(repo_id: str, revision: str | None, say: Callable[[str], None]) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        with hub_errors(repo_id):
            try:
                path = hf_hub_download(repo_id, CARD_NAME, revision=revision, library_name="mote")
            except RemoteEntryNotFoundError:
                return None
    except HubError as error:
        say(f"the licence of the base could not be looked up ({error}); check the card's front matter")
        return None
    return read_small(path, MAX_CARD_BYTES).decode("utf-8-sig")
