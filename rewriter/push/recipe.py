"""Makes the files of a recipe repo out of a variant's folder."""

import shlex
from collections.abc import Callable

from rewriter.edit.record import Recipe, VariantRecord, expert_set_of
from rewriter.hub.recipe import RECIPE_NAME
from rewriter.push.card import CARD_NAME, pushed_card
from rewriter.push.files import SMALL_FILE_BYTES, LocalFile, file_in_memory, list_files, read_variant
from rewriter.push.prepare import PushRequest
from rewriter.semantics import ACTIONS
from rewriter.variant.card import join_card, replace_block, split_card

NO_WEIGHTS = (
    "This repo holds a recipe, no weights: the experts, the values and the hashes of the base's tensors. MoTE applies it "
    "to the base that you have, and refuses any other base."
)


def recipe_files(request: PushRequest, say: Callable[[str], None]) -> tuple[list[LocalFile], VariantRecord]:
    """Return the files of a recipe repo made from a variant's folder, and the variant's record.

    Raises:
        InputError: the folder is no complete variant.
    """
    record = read_variant(request.folder)
    recipe = Recipe.of(record)
    files = [file_in_memory(RECIPE_NAME, recipe.to_json().encode())]
    for action in ACTIONS:
        expert_set = expert_set_of(recipe, action)
        if expert_set is not None:
            files.append(file_in_memory(f"{action}.json", expert_set.to_json().encode()))
    files += [
        file
        for file in list_files(request.folder, record)
        if file.path.startswith("mote-") and file.path != RECIPE_NAME and file.size_bytes <= SMALL_FILE_BYTES
    ]
    card = pushed_card(request.folder, record, request.repo_id, request.branch, say)
    assert card.content is not None
    files.append(file_in_memory(CARD_NAME, recipe_card(card.content.decode(), request).encode()))
    return files, record


def recipe_card(card: str, request: PushRequest) -> str:
    """Return a variant's card turned into its recipe's."""
    data, body = split_card(card)
    tags = [*data.get("tags", []), "mote-recipe"]
    data |= {"tags": list(dict.fromkeys(tags)), "library_name": "mote"}
    folder = request.repo_id.rsplit("/", 1)[-1]
    branch = "" if request.branch == "main" else f"@{request.branch}"
    rewrite = shlex.join(["mote-rewrite", "--recipe", f"{request.repo_id}{branch}", "-o", f"./{folder}"])
    commands = f"{rewrite}\n{shlex.join(['vllm', 'serve', f'./{folder}'])}"
    text = join_card(data, body)
    return replace_block(text, "mote-serve", f"{NO_WEIGHTS}\n\n```bash\n{commands}\n```", "Use it")
