"""mote-eval: parses the command line, calls the library, prints. Heavy imports wait until the command runs."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.ask.options import PAGE, AskRequest
from eval.options import OUTPUT, EvalRequest
from rewriter.command import DefaultCommandGroup, Option, PanelCommand, command, parameters_of
from rewriter.console import make_app, run, say, show
from rewriter.json_text import printed_json
from rewriter.progress import PartsProgress

EPILOG = """Examples:

  mote-eval --model ./DeepSeek-R1 --suppress refusal.json --prompts what-happened:listed -o results

  mote-eval --model ./DeepSeek-R1 --split 0.5 --find refused --prompts what-happened:listed --sweep-k 1,2,5,10,20 -o results

  mote-eval --base-url http://localhost:8000 --tuned-url http://localhost:8001 --model ./DeepSeek-R1 --prompts ccp.csv -o results

Further options go to vLLM's engine and are checked by vLLM, for example --tensor-parallel-size 8 or --max-model-len 4096.

A run that was stopped goes on where it was when the same command is given again.
"""

ASK_EPILOG = """Examples:

  mote-eval ask --model ./DeepSeek-R1 --suppress refusal.json --tensor-parallel-size 8

  mote-eval ask --base-url http://localhost:8000 --tuned-url http://localhost:8001 --model ./DeepSeek-R1 --suppress refusal.json

The page is at the address that is printed, on this machine alone, until Ctrl-C; nothing that is asked or answered is kept.

Further options go to vLLM's engine and are checked by vLLM, for example --tensor-parallel-size 8 or --max-model-len 4096.
"""

app = make_app(cls=DefaultCommandGroup)


@dataclass(frozen=True)
class CommandLine(EvalRequest):
    """The request, and how its results are printed."""

    dry_run: Annotated[
        bool, Option("Say what the run asks for and what it costs; no engine is loaded, nothing is written.", OUTPUT)
    ] = False
    tokens_per_second: Annotated[
        float | None, Option("The rate of one node that --dry-run reckons with.", OUTPUT, metavar="RATE")
    ] = None
    as_json: Annotated[bool, Option("Print results.json to stdout in place of the table.", OUTPUT, name="json")] = False


@dataclass(frozen=True)
class AskPage(AskRequest):
    """The request, and who opens the page."""

    open_browser: Annotated[bool, Option("Open the page in this machine's browser too.", PAGE, name="open")] = False


@command(app, CommandLine, epilog=EPILOG, pass_on=True)
def evaluate(request: CommandLine, words: list[str]) -> None:
    """Measure what a variant does: how much moves, whether random experts do the same, and what else breaks."""
    from eval.evaluate import check_complete
    from eval.evaluate import evaluate as evaluate_request
    from eval.report.table import one_screen
    from ftri.costs import check_rate

    request = replace(request, engine_arguments=engine_arguments("mote-eval", request, words))
    check_rate(request.tokens_per_second)
    if request.dry_run:
        from eval.costs import evaluation_costs

        costs = evaluation_costs(request, say, request.tokens_per_second)
        if request.as_json:
            typer.echo(json.dumps(costs.as_json()))
        else:
            show(costs.sentences())
        return
    results = evaluate_request(request, say, PartsProgress("answers"))
    if request.as_json:
        typer.echo(json.dumps(results.model_dump(mode="json", by_alias=True)))
    else:
        show(one_screen(results))
    say(f"{request.output / 'report.html'}")
    check_complete(results, request.output)


@command(app, AskPage, epilog=ASK_EPILOG, pass_on=True)
def ask(request: AskPage, words: list[str]) -> None:
    """Open a page on which base and variant answer side by side, with the tokens marked that chose the set's experts."""
    import webbrowser

    from eval.ask.ask import ask as ask_request

    def show(address: str) -> None:
        typer.echo(address)
        sys.stdout.flush()
        if request.open_browser and not webbrowser.open(address):
            say("warning: no browser could be opened here; the address is the line above")

    request = replace(request, engine_arguments=engine_arguments("mote-eval ask", request, words))
    ask_request(request, say, show)


def engine_arguments(name: str, request: CommandLine | AskPage, words: list[str]) -> dict[str, Any]:
    """What goes to vLLM's engine. Raises InputError for what neither it nor the command of this name knows."""
    from ftri.engine.arguments import parse_engine_arguments, unknown_option

    own = [f"--{parameter.name}" for parameter in parameters_of(type(request))]
    if words and request.is_served:
        raise unknown_option(words[0], name, own, "nor wanted beside --base-url, where no engine is started")
    pairs = [word for pair in request.engine_argument for word in ("--engine-argument", pair)]
    return parse_engine_arguments([*words, *pairs], name, own)


@app.command(cls=PanelCommand)
def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            help="Folders of mote-eval, or their results.json; NAME=RESULTS calls one otherwise than its folder.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for compare.html and compare.json.", show_default=False)
    ],
    json_output: Annotated[bool, typer.Option("--json", help="Print compare.json to stdout.")] = False,
) -> None:
    """Put the variants of several evaluations on one page: what each moves, and how far from the base that takes it.

    Evaluations of another base, other prompts, another counted change, other labelling or another judge are refused.

    Example: mote-eval compare results-paper results-refined drop=results-drop -o compared
    """
    from eval.compare.page import PAGE, compare_results
    from eval.compare.table import one_screen

    found = compare_results(results, output)
    if json_output:
        typer.echo(printed_json(found.model_dump_json(by_alias=True)))
    else:
        show(one_screen(found))
    say(f"{output / PAGE}")


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
