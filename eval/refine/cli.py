"""mote-refine: parses the command line, calls the library, prints. Heavy imports wait until the command runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.refine.options import CHECK, RefineRequest
from rewriter.command import Option, command, parameters_of
from rewriter.console import make_app, run, say, show
from rewriter.json_text import printed_json
from rewriter.progress import PartsProgress

if TYPE_CHECKING:
    from eval.answers.journal import Progress

EPILOG = """Examples:

  mote-refine --model ./DeepSeek-R1 --prompts what-happened:listed --target refused --toward aligned,reasoned -o refined.json

  mote-refine --model ./DeepSeek-R1 --prompts what-happened:listed --candidates refusal.json:200 --budget-kl 0.02 -o refined.json

Further options go to vLLM's engine and are checked by vLLM, for example --tensor-parallel-size 8 or --max-model-len 4096.

A run that was stopped goes on where it was when the same command is given again.
"""

app = make_app()


@dataclass(frozen=True)
class CommandLine(RefineRequest):
    """The request, and how its results are printed."""

    dry_run: Annotated[
        bool, Option("Say what the run measures and what it costs; no engine is loaded, nothing is written.", CHECK)
    ] = False
    tokens_per_second: Annotated[
        float | None,
        Option("The rate that --dry-run reckons with [default: what an earlier run measured].", CHECK, metavar="RATE"),
    ] = None
    as_json: Annotated[bool, Option("Print refine.json to stdout in place of the lines.", CHECK, name="json")] = False


@command(app, CommandLine, epilog=EPILOG, pass_on=True)
def refine(request: CommandLine, words: list[str]) -> None:
    """Find the experts that cause a behaviour: suppress every candidate, measure, grow a set, check it held out."""
    from eval.evaluate import check_complete
    from eval.refine.page import PAGE
    from eval.refine.refine import refine as refine_request
    from ftri.costs import check_rate

    request = replace(request, engine_arguments=engine_arguments(words))
    check_rate(request.tokens_per_second)
    if request.dry_run:
        from eval.refine.costs import refinement_costs

        costs = refinement_costs(request, say, request.tokens_per_second)
        if request.as_json:
            typer.echo(json.dumps(costs.as_json()))
        else:
            show(costs.sentences())
        return
    found = refine_request(request, say, progress_bar())
    if request.as_json:
        typer.echo(printed_json(found.results.model_dump_json(by_alias=True)))
    else:
        show(lines(found.results.model_dump(), json.loads(found.check.model_dump_json()) if found.check else None))
    say(str(request.folder / PAGE))
    if found.check is not None:
        check_complete(found.check, request.folder)


def lines(results: Mapping[str, Any], check: Mapping[str, Any] | None) -> list[str]:
    """The result on one screen: the path of the set, and how it did on the held-out prompts."""
    rows = [f"{'step':<7}{'layer':>6}{'expert':>7}{'in set':>7}{'moved':>8}{'KL':>9}"]
    rows += [
        f"{step['change']:<7}{step['layer']:>6}{step['expert']:>7}{len(step['experts']):>7}{step['moved']:>8.1%}{step['kl']:>9.4f}"
        for step in results["path"]
    ]
    rows.append(f"ended: {results['ended']}; {results['num_edits']} edits measured")
    if check is None:
        return rows
    for one in check["comparisons"]:
        if one["after"] == check["primary"]:
            moved = one["moved"]["rate"]
            rows.append(f"held out: {check['target']['change']} {moved['count']} of {moved['total']}")
    rows += [
        f"random sets matched by {null['matching']}: mean {null['mean']:.1%}, "
        f"most {null['highest']:.1%}, p = {null['p_value']:.3g}"
        for null in check["controls"]
    ]
    if (tuned := results["tuned"]) is not None:
        best, grown = tuned["best"], tuned["grown_moved"]
        rows.append(
            f"tuned in {len(tuned['trials'])} trials: "
            + (
                f"whole reroutes {grown:.1%} at a KL of {tuned['grown_kl']:.4f}"
                if grown is not None
                else "no whole set"
            )
            + ", strengths "
            + (f"{best['moved']:.1%} at {best['kl']:.4f}" if best is not None else "that fit the budget were not found")
        )
    rows += [
        f"the search's own null {number}: {len(null['experts'])} experts, held out "
        + ("no set" if null["held_out_moved"] is None else f"{null['held_out_moved']:.1%}")
        for number, null in enumerate(results["nulls"], start=1)
    ]
    return rows


def engine_arguments(words: list[str]) -> dict[str, Any]:
    """What goes to vLLM's engine. Raises InputError for what neither it nor mote-refine knows."""
    from ftri.engine.arguments import parse_engine_arguments

    return parse_engine_arguments(
        words, "mote-refine", [f"--{parameter.name}" for parameter in parameters_of(CommandLine)]
    )


def progress_bar() -> "Progress":
    """One line a part on stderr: edits measured, or answers given, whatever comes."""
    return PartsProgress("pieces")


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
