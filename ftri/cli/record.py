"""The command line `mote-record`: run prompts through unmodified vLLM and keep which experts every token selected."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter.console import make_app, run, say
from rewriter.errors import InputError

if TYPE_CHECKING:
    from ftri.record import RecordPlan, RecordSummary

app = make_app()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def record(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Model folder, or Hub id.", show_default=False)],
    prompts: Annotated[
        str,
        typer.Option(
            help="what-happened:listed, what-happened:reconstructed-756, language; a .jsonl, .csv or .parquet file; or "
            "hub:ORG/NAME[@REVISION][/FILE][:COLUMN].",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trace folder; an unfinished one is continued.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub model.", show_default=False)] = None,
    prompts_revision: Annotated[str | None, typer.Option(help="Revision of a Hub dataset.", show_default=False)] = None,
    column: Annotated[str | None, typer.Option(help="Column of the prompts' text.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a response.")] = 512,
    samples: Annotated[int, typer.Option(help="Responses per prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the distribution sampled from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples; each response has its own from it.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Give prompts as they are, without the chat template.")] = False,
    chat_template: Annotated[
        Path | None, typer.Option(help="Jinja file instead of the model's chat template.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be recorded, start no engine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Record which experts every token selects, with unmodified vLLM.

    Further options go to vLLM's engine and are checked by vLLM, for example --max-model-len 4096 or
    --tensor-parallel-size 8; its short ones (-tp 8) belong behind a --.

    The same command continues a run that was stopped or killed.

    Example: mote-record --model deepseek-ai/DeepSeek-R1 --prompts what-happened:listed -o traces --max-model-len 8192
    """
    from ftri.engine.arguments import parse_engine_arguments
    from ftri.engine.engine import Sampling
    from ftri.record import RecordOptions, plan_recording

    options = RecordOptions(
        model=model,
        prompts=prompts,
        output=output,
        revision=revision,
        prompts_revision=prompts_revision,
        column=column,
        raw=raw,
        chat_template=chat_template,
        samples=samples,
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed),
        engine_arguments=parse_engine_arguments(check_words(context.args)),
    )
    plan = plan_recording(options, say)
    if dry_run:
        show(plan.summary(), as_json)
        return
    summary = record_with_bar(plan)
    show(summary.as_json(), as_json)


def check_words(words: list[str]) -> list[str]:
    """The words for vLLM.

    Raises:
        InputError: no option precedes the first word, which is then a mistake.
    """
    if words and not words[0].startswith("-"):
        raise InputError(f"{words[0]!r} was not expected: prompts are given with --prompts, the model with --model")
    return words


def record_with_bar(plan: RecordPlan) -> RecordSummary:
    """Record with a progress bar on stderr: responses, tokens per second, time left."""
    from tqdm import tqdm

    from ftri.record import record as run_recording

    num_tokens = 0
    with tqdm(total=plan.num_responses, unit="response", desc="recording", smoothing=0.1) as bar:

        def begin(responses: int) -> None:
            # Rate and time left are those of the running engine, not of its start or of an earlier run.
            bar.initial = bar.n = bar.last_print_n = responses
            bar.start_t = bar.last_print_t = bar._time()
            bar.refresh()

        def advance(responses: int, tokens: int) -> None:
            nonlocal num_tokens
            num_tokens += tokens
            bar.set_postfix_str(f"{num_tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            bar.update(responses)

        return run_recording(plan, begin, advance)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result on stdout: JSON, or a line per fact."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(
            f"{name.replace('_', ' ')}: {value:,.1f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')}: {value}"
        )


def main() -> None:
    """Console entry."""
    # Deprecations within the libraries that vLLM pulls in are not the user's to mend.
    warnings.simplefilter("ignore", FutureWarning)
    run(app)
