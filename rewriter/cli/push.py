"""mote-push: publish a variant on the Hub, moving only what changed, or a recipe of a few kilobytes."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter.console import make_app, run, say, show
from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.edit.record import VariantRecord
    from rewriter.push.execute import PushResult
    from rewriter.push.plan import PushPlan
    from rewriter.push.prepare import PushRequest

app = make_app()


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Variant folder made by mote-rewrite.", metavar="DIR")],
    repo: Annotated[str, typer.Argument(help="Repo on the Hub: ORG/NAME, or NAME of your own.", metavar="REPO")],
    revision: Annotated[
        str,
        typer.Option(help="Branch to push to; made if missing, from the base's commit where the repo has it."),
    ] = "main",
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    base_repo: Annotated[
        str | None,
        typer.Option(help="Copy unchanged shards from this repo on the server, such as your own copy of the base."),
    ] = None,
    duplicate_base: Annotated[
        bool,
        typer.Option("--duplicate-base", help="Make a new repo by duplicating the base, with history, on the server."),
    ] = False,
    recipe: Annotated[
        bool,
        typer.Option("--recipe", help="Publish no weights: the experts, the plan with hashes, results and card."),
    ] = False,
    allow_public_from_gated: Annotated[
        bool,
        typer.Option("--allow-public-from-gated", help="Let a variant of a gated or private base be public."),
    ] = False,
    hash_all: Annotated[
        bool, typer.Option("--hash-all", help="Read every shard instead of taking the mote block's word.")
    ] = False,
    upload_all: Annotated[
        bool, typer.Option("--upload-all", help="Copy nothing across repos, for storage regions that differ.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, or the plan, as JSON.")] = False,
) -> None:
    """Push DIR to REPO in one commit: edited shards are uploaded, unchanged ones copied on the server or left in place.

    The plan (files, bytes sent, copied, kept) is shown before anything moves. An interrupted push is repeated with the
    same command. The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from rewriter.push.prepare import PushRequest

    request = PushRequest(
        folder=folder,
        repo_id=repo,
        branch=revision,
        private=private,
        base_repo=base_repo,
        duplicate_base=duplicate_base,
        allow_public_from_gated=allow_public_from_gated,
        hash_all=hash_all,
        upload_all=upload_all,
        recipe=recipe,
    )
    outcome = push_variant(request, message, yes=yes, dry_run=dry_run)
    if as_json:
        print(json.dumps(outcome.to_json(), indent=2))
    else:
        show(outcome.lines())


@dataclass(frozen=True)
class PushOutcome:
    """The plan, and the result where it was carried out."""

    plan: "PushPlan"
    result: "PushResult | None"

    def to_json(self) -> dict[str, Any]:
        """As --json prints it."""
        return {**(asdict(self.result) if self.result else {}), "plan": self.plan.to_json()}

    def lines(self) -> list[str]:
        """For people."""
        from rewriter.push.plan import describe_plan

        if self.result is None:
            return describe_plan(self.plan)
        done = f"pushed in {self.result.seconds:.1f} s"
        if self.result.did_nothing:
            done = "nothing to do: the branch holds this variant"
        return [done, self.result.url, f"commit {self.result.commit}"]


def push_variant(request: "PushRequest", message: str | None, *, yes: bool, dry_run: bool = False) -> PushOutcome:
    """Plan, show, ask and push; also what `mote-rewrite --push-to-hub` ends with."""
    from rewriter.push.execute import execute_push
    from rewriter.push.plan import describe_plan
    from rewriter.push.prepare import full_repo_id, prepare_push, recipe_files, variant_files

    request = replace(request, repo_id=full_repo_id(request.repo_id))
    files, record = (recipe_files if request.recipe else variant_files)(request, say)
    prepared = prepare_push(request, files, record, say)
    if dry_run:
        return PushOutcome(prepared.plan, None)
    # Whoever is asked must see what about.
    for line in describe_plan(prepared.plan):
        say(line, always=not yes)
    if not prepared.plan.is_done:
        check_can_ask(yes)
        if not yes and not typer.confirm("Go on?", err=True):
            raise InputError("not pushed: the plan was not confirmed")
    return PushOutcome(prepared.plan, execute_push(prepared, message or _message(record, request.recipe), say))


def check_can_ask(yes: bool) -> None:
    """Raise unless the plan is confirmed already or there is somebody to ask.

    Raises:
        InputError: neither.
    """
    if not yes and not sys.stdin.isatty():
        raise InputError("a push needs a yes to its plan, but there is nobody to ask: give --yes")


def _message(record: "VariantRecord", recipe: bool) -> str:
    what = "Add the recipe of" if recipe else "Add"
    return f"{what} a MoTE variant: {record.semantics} of {record.behavior}"


def main() -> None:
    """Entry point of the console script."""
    run(app)


if __name__ == "__main__":
    main()
