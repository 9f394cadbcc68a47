"""A recipe found: in a file, a folder, or a repo on the Hub, of which one file is fetched."""

from pathlib import Path

from rewriter.checkpoint.links import check_links
from rewriter.edit.record import Recipe
from rewriter.errors import HubError, InputError, RecordError
from rewriter.hub.errors import hub_errors, quiet_hub_logs
from rewriter.hub.models import looks_like_repo_id
from rewriter.small_file import read_small

RECIPE_NAME = "mote-recipe.json"


def load_recipe(source: str) -> Recipe:
    """Read a recipe from a file, a folder with mote-recipe.json, or a Hub repo ORG/NAME[@BRANCH] (one file is fetched).

    Raises:
        InputError: no such file, or not a recipe.
        HubError: the repo does not exist, holds no recipe, or cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        check_links(path, [RECIPE_NAME])
        path = path / RECIPE_NAME
    elif not path.exists() and looks_like_repo_id(source.partition("@")[0]):
        repo_id, _, revision = source.partition("@")
        path = _fetch(repo_id, revision or None)
    if not path.is_file():
        raise InputError(f"'{source}' is neither a recipe file, a folder with {RECIPE_NAME}, nor a repo ORG/NAME")
    try:
        text = read_small(path, error=RecordError).decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"'{path}' is no recipe: it is not UTF-8 text (byte {error.start})") from None
    return Recipe.read(text, str(path))


def _fetch(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    quiet_hub_logs()
    with hub_errors(repo_id):
        try:
            return Path(hf_hub_download(repo_id, RECIPE_NAME, revision=revision, library_name="mote"))
        except RemoteEntryNotFoundError:
            raise HubError(f"'{repo_id}' holds no {RECIPE_NAME}: it is no recipe; use --model for a model") from None
