"""mote-tune: parses the command line, calls the library, prints. Heavy imports wait until the command runs."""

import json
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from eval.refine.options import CHECK, INPUT
from eval.tune.options import TuneRequest
from rewriter.command import Option, command, parameters_of
from rewriter.console import make_app, run, say, show

EPILOG = """Examples:

  mote-tune --model ./DeepSeek-R1 --behavior refused --prompts what-happened:reconstructed-756 -o tuned --dry-run

  mote-tune --model ./DeepSeek-R1 --behavior refused --prompts what-happened:reconstructed-756 -o tuned --budget-kl 0.02

Further options go to vLLM's engine and are checked by vLLM, for example --tensor-parallel-size 8 or --max-model-len 4096.

A run that was stopped goes on where it was when the same command is given again.
"""

app = make_app()


@dataclass(frozen=True)
class CommandLine(TuneRequest):
    """The request, and how its results are printed."""

    dry_run: Annotated[
        bool, Option("Say what the run does and what it costs; no engine is loaded, nothing is written.", INPUT)
    ] = False
    tokens_per_second: Annotated[
        float | None,
        Option("The rate that the plan reckons with [default: what was measured so far].", INPUT, metavar="RATE"),
    ] = None
    as_json: Annotated[bool, Option("Print the plan, or the check's results, as JSON.", CHECK, name="json")] = False


@command(app, CommandLine, epilog=EPILOG, pass_on=True)
def tune(request: CommandLine, words: list[str]) -> None:
    """Record, label, find, refine, check and write the variant, in one engine load."""
    from eval.refine.cli import progress_bar
    from eval.report.table import one_screen
    from eval.tune.plan import show_plan
    from eval.tune.tune import OneEngine, plan_tuning
    from eval.tune.tune import tune as tune_request
    from ftri.costs import check_rate
    from ftri.engine.arguments import parse_engine_arguments

    own = [f"--{parameter.name}" for parameter in parameters_of(CommandLine)]
    request = replace(request, engine_arguments=parse_engine_arguments(words, "mote-tune", own))
    check_rate(request.tokens_per_second)
    recording = plan_tuning(request, say)
    plan = show_plan(request, recording, say, request.tokens_per_second)
    if request.dry_run:
        if request.as_json:
            typer.echo(json.dumps(plan.as_json()))
        else:
            show(plan.sentences())
        return
    for sentence in plan.sentences():
        say(sentence)
    with closing(OneEngine(recording)) as engine:
        tuned = tune_request(request, recording, say, progress_bar(), engine)
    if request.as_json:
        typer.echo(json.dumps(tuned.check.model_dump(mode="json", by_alias=True)))
    else:
        show(one_screen(tuned.check))
    say(f"{tuned.variant}")


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
