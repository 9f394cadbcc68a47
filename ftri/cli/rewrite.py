"""mote-rewrite: parses the command line, calls the library, prints. Heavy imports wait until a command runs.

What it writes is the rewriter's; it stands here because traces say which gain a stimulated expert needs.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rewriter.console import byte_progress, make_app, run, say, show
from rewriter.json_text import printed_json

EPILOG = """Examples:

  mote-rewrite --suppress refusal.json

  mote-rewrite --suppress preset:r1-refusal --model ./DeepSeek-R1 --dry-run

  mote-rewrite --suppress refusal.json --stimulate english.json --top 10 -o ./R1-tuned

  mote-rewrite --stimulate english.json --gain auto --traces traces-stimulated -o ./R1-english

  mote-rewrite --suppress refusal.json --model R1-Q4_K_M-00001-of-00009.gguf -o ./R1-Q4-tuned
"""

app = make_app()


@app.command(epilog=EPILOG)
def rewrite(
    suppress: Annotated[
        str | None, typer.Option(metavar="FILE", help="Expert set to switch off: a JSON file, or preset:NAME.")
    ] = None,
    stimulate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Expert set to switch on: always selected by the router.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder, GGUF file or Hub id of the base; the expert set's own model if not given."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to create [default: ./<model>-mote-<behavior>].")
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="K", help="Only the first K experts of each set.")] = None,
    layer_index: Annotated[
        str | None,
        typer.Option(
            metavar="model|moe",
            help="How the set counts layers, if it does not say or says it wrongly: of the model, or of its MoE layers.",
        ),
    ] = None,
    semantics: Annotated[
        str,
        typer.Option(
            metavar="auto|reroute|drop|drop-renorm",
            help="reroute: by the router's bias, or by its row where it has none; the next-best expert steps in. drop: the"
            " output zeroed, the share kept. auto: reroute wherever the router can hold it. drop-renorm: the paper's"
            " suppression, which a server with this package does; all weights stay the base's.",
        ),
    ] = "auto",
    dial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SET",
            help="A set that requests to a server with this package choose by name (NAME=stimulate:SET to switch it on);"
            " may be given several times. All weights stay the base's; --semantics is drop-renorm if not given.",
        ),
    ] = None,
    suppress_bias: Annotated[
        str,
        typer.Option(
            metavar="auto|-inf|margin|NUMBER",
            help="Bias of suppressed experts; auto: -inf where that is safe, margin for GGUF.",
        ),
    ] = "auto",
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            help="Drop in part: suppressed experts keep 1 - strength of their output; --semantics is drop then.",
        ),
    ] = None,
    gain: Annotated[
        str | None,
        typer.Option(
            metavar="auto|mean|NUMBER",
            help="Multiply the output of stimulated experts, by what --traces say. auto: comes closest to the paper's weight"
            " token by token; mean: meets it in the mean.",
        ),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Traces with weights (mote-record --weights float32), of a variant that stimulates without a gain, or of the"
            " base: they give --gain auto and mean, and say how far a gain, a strength or a drop is from the paper's edit.",
        ),
    ] = None,
    renormalize: Annotated[
        bool,
        typer.Option("--renormalize", help="Turn renormalisation on where the base has it off; changes every token."),
    ] = False,
    no_stamp: Annotated[
        bool,
        typer.Option("--no-stamp", help="Leave the headers of edited files as they are: only the values change."),
    ] = False,
    link: Annotated[
        str,
        typer.Option(
            metavar="auto|reflink|hardlink|symlink|copy",
            help="How unchanged shards come over; auto: reflink, else hardlink, else copy.",
        ),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output folder that is a variant.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME", help="Apply a published recipe (or a file, or a folder) to the base it was made for."
        ),
    ] = None,
    remote_plan: Annotated[
        bool,
        typer.Option("--remote-plan", help="Plan on the Hub's files by byte ranges and say what a run would download."),
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Push the variant to this repo afterwards, as mote-push does.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push-to-hub: make a new repo private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --push-to-hub: do not ask for confirmation.")] = False,
) -> None:
    """Write a variant of a Mixture-of-Experts checkpoint in which experts are switched off or on.

    Only the tensors in the plan change; the base is never opened for writing. The variant is served by stock runtimes.
    """
    from ftri.analysis.by_traces import ByTraces, read_gain
    from rewriter.cli.text import plan_document, plan_lines, remote_plan_document, remote_plan_lines, result_lines
    from rewriter.errors import InputError
    from rewriter.rewrite import RewriteRequest, execute, prepare, prepare_remote, would_download
    from rewriter.semantics import DROP_RENORM
    from rewriter.serve import execute_served, prepare_served

    number, word = read_gain(gain, traces)
    request = RewriteRequest(
        suppress=suppress,
        stimulate=stimulate,
        model=model,
        revision=revision,
        output=output,
        top=top,
        layer_index=layer_index,
        semantics=semantics,
        suppress_bias=suppress_bias,
        renormalize=renormalize,
        link=link,
        overwrite=overwrite,
        stamp=not no_stamp,
        recipe=recipe,
        strength=strength,
        gain=number,
    )
    if dial or semantics == DROP_RENORM:
        if push_to_hub is not None:
            raise InputError("--push-to-hub cannot be given for a served variant: it has no weights of its own to push")
        if gain is not None or traces is not None:
            raise InputError("--gain changes tensors, which --dial and --semantics drop-renorm leave as they are")
        served = prepare_served(request, dial or [], say=say, fetch=not dry_run)
        if dry_run:
            _print(served.to_json() if as_json else served.lines())
        else:
            written = execute_served(served, progress=byte_progress)
            _print(written.to_json() if as_json else written.lines())
        return
    if recipe is not None and (gain is not None or traces is not None):
        raise InputError("--recipe says what to edit, so --gain and --traces cannot be given with it")
    measure = None if traces is None else ByTraces(traces, word)
    if remote_plan or (dry_run and would_download(request)):
        remote = prepare_remote(request, say=say, measure=measure)
        _print(remote_plan_document(remote) if as_json else remote_plan_lines(remote))
        return
    prepared = prepare(request, say=say, measure=measure)
    if dry_run:
        _print(plan_document(prepared) if as_json else plan_lines(prepared))
        return
    if push_to_hub is not None:
        from rewriter.cli.push import check_can_ask

        check_can_ask(yes)
    result = execute(prepared, progress=byte_progress)
    if push_to_hub is None or not as_json:
        _print(result.to_json() if as_json else result_lines(result, prepared.plan))
    if push_to_hub is None:
        return
    from rewriter.cli.push import push_variant
    from rewriter.push.prepare import PushRequest

    outcome = push_variant(PushRequest(prepared.target, push_to_hub, private=private), None, yes=yes)
    if as_json:
        _print({**result.to_json(), "push": outcome.to_json()})
    else:
        show(outcome.lines())


def _print(document: dict[str, Any] | list[str]) -> None:
    """A JSON document, or lines for people."""
    if isinstance(document, list):
        show(document)
    else:
        print(printed_json(json.dumps(document, indent=2, ensure_ascii=False)))


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
