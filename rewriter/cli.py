"""mote-rewrite: parses the command line, calls the library, prints. Heavy imports wait until a command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewriter.console import make_app, run, say

if TYPE_CHECKING:
    from rewriter.emit import EmitResult
    from rewriter.plan import Plan
    from rewriter.preview import Preview

EPILOG = """Examples:

  mote-rewrite --suppress refusal.json

  mote-rewrite --suppress preset:r1-refusal --model ./DeepSeek-R1 --dry-run

  mote-rewrite --suppress refusal.json --stimulate english.json --top 10 -o ./R1-tuned
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
        str | None, typer.Option(help="Folder or Hub id of the base; the expert set's own model if not given.")
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
            metavar="reroute|drop",
            help="reroute: the router's bias, the next-best expert steps in. drop: the output zeroed, the share kept.",
        ),
    ] = "reroute",
    suppress_bias: Annotated[
        str,
        typer.Option(
            metavar="auto|-inf|margin|NUMBER", help="Bias of suppressed experts; auto: -inf where that is safe."
        ),
    ] = "auto",
    renormalize: Annotated[
        bool,
        typer.Option("--renormalize", help="Turn renormalisation on where the base has it off; changes every token."),
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
) -> None:
    """Write a variant of a Mixture-of-Experts checkpoint in which experts are switched off or on.

    Only the tensors in the plan change; the base is never opened for writing. The variant is served by stock runtimes.
    """
    from rewriter.progress import byte_progress
    from rewriter.rewrite import RewriteRequest, execute, prepare

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
    )
    prepared = prepare(request, say=say)
    if dry_run:
        _print_plan(prepared.plan, prepared.preview(), prepared.base, prepared.target, as_json)
        return
    _print_result(execute(prepared, progress=byte_progress), prepared.plan, as_json)


def _print_plan(plan: "Plan", preview: "Preview", base: Path, target: Path, as_json: bool) -> None:
    from rewriter.summary import plan_document, plan_lines

    if as_json:
        print(json.dumps(plan_document(plan, preview, base, target), indent=2, ensure_ascii=False))
    else:
        print("\n".join(plan_lines(plan, preview, base, target)))


def _print_result(result: "EmitResult", plan: "Plan", as_json: bool) -> None:
    from rewriter.summary import result_lines

    if as_json:
        print(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(result_lines(result, plan)))


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
