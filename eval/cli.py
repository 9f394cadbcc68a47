"""mote-eval: parses the command line, calls the library, prints. Heavy imports wait until the command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter.console import make_app, run, say
from rewriter.semantics import SEMANTICS

if TYPE_CHECKING:
    from eval.answers.collect import Progress

EPILOG = """Examples:

  mote-eval --model ./DeepSeek-R1 --suppress refusal.json --prompts what-happened:listed -o results

  mote-eval --model ./DeepSeek-R1 --split 0.5 --find refused --prompts what-happened:listed --sweep-k 1,2,5,10,20 -o results

  mote-eval --base-url http://localhost:8000 --tuned-url http://localhost:8001 --model ./DeepSeek-R1 --prompts ccp.csv -o results

A run that was stopped goes on where it was when the same command is given again.
"""

app = make_app()


@app.command(epilog=EPILOG)
def evaluate(
    prompts: Annotated[
        str,
        typer.Option(
            help="Prompts: a built-in set, a .jsonl, .csv or .parquet file, or hub:ORG/NAME[@REV][/FILE][:COLUMN]."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for results.json, report.html and every transcript.")
    ],
    model: Annotated[str | None, typer.Option(help="Base model: folder or Hub id.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base.")] = None,
    suppress: Annotated[
        str | None, typer.Option(metavar="FILE", help="Expert set to switch off: a JSON file, or preset:NAME.")
    ] = None,
    stimulate: Annotated[str | None, typer.Option(metavar="FILE", help="Expert set to switch on.")] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR_OR_SET",
            help="Another variant to compare: a folder of mote-rewrite or an expert set; repeatable.",
        ),
    ] = None,
    layer_index: Annotated[
        str | None, typer.Option(metavar="model|moe", help="How the sets count layers, if they do not say.")
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Use an expert set that says it is of another model.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Label to count, if the expert set's behavior names none.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the prompts' text.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="At most N prompts of each set, evenly spread.")
    ] = None,
    semantics: Annotated[
        str, typer.Option(help="Comma-separated; the first is the one that controls, sweep and safety are about.")
    ] = ",".join(SEMANTICS),
    controls: Annotated[int, typer.Option(metavar="N", help="Random expert sets of each matching; 0 for none.")] = 99,
    control_matching: Annotated[
        str, typer.Option(help="Comma-separated: uniform, layer, frequency (layer and activation frequency).")
    ] = "uniform,layer,frequency",
    control_prompts: Annotated[
        int, typer.Option(metavar="N", help="Prompts at risk that each random set answers.")
    ] = 200,
    control_others: Annotated[int, typer.Option(metavar="N", help="Other prompts that each random set answers.")] = 50,
    sweep_k: Annotated[str, typer.Option(metavar="K,K,...", help="Also the first K experts alone, for each K.")] = "",
    split: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Find the experts on this share of the prompts, test on the rest."),
    ] = None,
    split_by: Annotated[
        str | None, typer.Option(metavar="FACTOR", help="Keep all prompts of one place, subject, ... on one side.")
    ] = None,
    find: Annotated[
        str | None, typer.Option(metavar="BEHAVIOR", help="With --split: the class, as mote-ftri --behavior [refused].")
    ] = None,
    find_k: Annotated[int, typer.Option(metavar="K", help="With --split: how many experts to find.")] = 10,
    stimulate_found: Annotated[
        bool, typer.Option("--stimulate-found", help="With --split: switch the found experts on instead of off.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Answers per prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling, splits, random sets and bootstraps.")] = 0,
    label_cut: Annotated[
        bool, typer.Option("--label-cut", help="Label cut-off answers by what is there, where that decides.")
    ] = False,
    no_repeat: Annotated[
        bool, typer.Option("--no-repeat", help="Leave out the second run of the base (the A/A flip rate).")
    ] = False,
    neutral_prompts: Annotated[
        str | None, typer.Option(help="Prompts for the KL divergence [default: a built-in set].")
    ] = None,
    neutral_limit: Annotated[int, typer.Option(metavar="N", help="How many of them.")] = 32,
    kl_tokens: Annotated[int, typer.Option(help="Answer tokens per neutral prompt.")] = 64,
    kl_listed: Annotated[
        int, typer.Option(help="Likeliest tokens compared per position; -1 for the whole vocabulary (exact).")
    ] = 128,
    harm: Annotated[
        str | None, typer.Option(metavar="SET", help="Prompts that should be refused: file or hub:ORG/NAME.")
    ] = None,
    xstest: Annotated[str | None, typer.Option(metavar="SET", help="XSTest: file or hub:walledai/XSTest.")] = None,
    mt_bench: Annotated[
        str | None, typer.Option(metavar="SET", help="MT-Bench questions: question.jsonl or hub:ORG/NAME.")
    ] = None,
    references: Annotated[
        str | None, typer.Option(metavar="FILE", help="MT-Bench reference answers (gpt-4.jsonl).")
    ] = None,
    judge_prompts: Annotated[str | None, typer.Option(metavar="FILE", help="FastChat's judge_prompts.jsonl.")] = None,
    judge_url: Annotated[str | None, typer.Option(metavar="URL", help="OpenAI-compatible server of the judge.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the judge [default: the only one served].")] = None,
    judge_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the judge's API key.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="Compare running servers: the base.")] = None,
    tuned_url: Annotated[str | None, typer.Option(metavar="URL", help="Compare running servers: the variant.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Name of the base at its server [default: the only one served].")
    ] = None,
    tuned_model: Annotated[str | None, typer.Option(help="Name of the variant at its server.")] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the servers' API key.")
    ] = None,
    api: Annotated[
        str,
        typer.Option(
            metavar="completions|chat",
            help="completions: prompts rendered here with --model's template, raw text back.",
        ),
    ] = "completions",
    extra_body: Annotated[
        str, typer.Option(metavar="JSON", help="More fields for every request to the servers.")
    ] = "{}",
    concurrency: Annotated[int, typer.Option(help="Requests to a server at a time.")] = 16,
    attempts: Annotated[int, typer.Option(help="Tries per request before giving up.")] = 6,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one answer of a server.")] = 600.0,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Chat template in place of the model's own.")
    ] = None,
    engine_argument: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of vLLM's engine, e.g. tensor_parallel_size=8; repeatable."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Variant folder whose model card takes up the results.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json to stdout in place of the table.")
    ] = False,
) -> None:
    """Measure what a variant does: how much moves, whether random experts do the same, and what else breaks."""
    from eval.evaluate import EvalRequest, check_complete
    from eval.evaluate import evaluate as evaluate_request
    from eval.options import RunOptions
    from eval.parsing import parse_choices, parse_engine_arguments, parse_json_object, parse_layer_index, parse_numbers
    from eval.report.table import one_screen
    from ftri.endpoints import Endpoint

    options = RunOptions(
        semantics=parse_choices("--semantics", semantics, SEMANTICS),
        samples=samples,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        label_cut=label_cut,
        repeat_base=not no_repeat,
        controls=controls,
        control_matching=parse_choices("--control-matching", control_matching, ("uniform", "layer", "frequency")),
        control_prompts=control_prompts,
        control_others=control_others,
        sweep_k=parse_numbers("--sweep-k", sweep_k),
        kl_tokens=kl_tokens,
        kl_listed=kl_listed,
        neutral_prompts=neutral_limit,
    )
    (api,) = parse_choices("--api", api, ("completions", "chat"))
    shared: dict[str, Any] = {"concurrency": concurrency, "attempts": attempts, "timeout_seconds": timeout}
    extra = parse_json_object("--extra-body", extra_body)
    request = EvalRequest(
        prompts=prompts,
        output=output,
        options=options,
        model=model,
        revision=revision,
        suppress=suppress,
        stimulate=stimulate,
        variants=variants or [],
        layer_index=parse_layer_index(layer_index),
        any_model=any_model,
        target=target,
        column=column,
        limit=limit,
        split=split,
        split_by=split_by,
        find=find,
        find_count=find_k,
        stimulate_found=stimulate_found,
        neutral=neutral_prompts,
        harm=harm,
        xstest=xstest,
        mt_bench=mt_bench,
        references=references,
        judge_prompts=judge_prompts,
        judge=Endpoint(judge_url, judge_model, judge_key, **shared) if judge_url else None,
        base=Endpoint(base_url, base_model, api_key, extra_body=extra, **shared) if base_url else None,
        tuned=Endpoint(tuned_url, tuned_model, api_key, extra_body=extra, **shared) if tuned_url else None,
        api=api,
        chat_template=chat_template,
        engine_arguments=parse_engine_arguments(engine_argument or []),
        card=card,
    )
    results = evaluate_request(request, say, progress_bar())
    typer.echo(
        json.dumps(results.model_dump(mode="json", by_alias=True)) if as_json else one_screen(results), nl=as_json
    )
    say(f"{output / 'report.html'}")
    check_complete(results, output)


def progress_bar() -> "Progress":
    """One bar on stderr that counts answers, whatever the arm."""
    from tqdm import tqdm

    bar = tqdm(unit=" answers", disable=None)

    def show(arm: str, there: int, wanted: int) -> None:
        bar.set_description_str(f"{arm} {there}/{wanted}", refresh=False)
        bar.update(1)

    return show


def main() -> None:
    """Console entry point."""
    run(app)
