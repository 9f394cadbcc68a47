"""mote-verify: parses the command line, calls the library, prints.

It is about what mote-rewrite wrote, and stands here because traces can speak of that too.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter.console import byte_progress, make_app, run, say, show
from rewriter.json_text import printed_json

if TYPE_CHECKING:
    from ftri.traces.selections import Selections
    from rewriter.edit.record import VariantRecord

app = make_app()


@app.command(epilog="Example:\n\n  mote-verify ./DeepSeek-R1-mote-refusal --base ./DeepSeek-R1")
def verify_variant(
    variant: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that mote-rewrite wrote.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder, GGUF file or Hub id of the base; the one that OUT names if not given."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="llama-imatrix's output on a GGUF variant: no suppressed expert may have been selected.",
        ),
    ] = None,
    base_imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same of the base, to show its counts beside.")
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Traces that mote-record made of OUT: how often they select the suppressed experts."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every byte, also of shards that are the base's own files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prove that a variant differs from its base only where its plan says, and say what follows from that and what not."""
    from rewriter.checkpoint.kinds import open_model
    from rewriter.cli.text import proof_lines, selection_lines, verify_lines
    from rewriter.edit.record import read_record
    from rewriter.errors import InputError
    from rewriter.hub.models import resolve_model
    from rewriter.variant.proof import what_is_proved
    from rewriter.variant.runtimes import safety
    from rewriter.variant.selections import check_selections
    from rewriter.variant.verify import base_of, verify

    if _is_served(variant):
        if traces or imatrix or base_imatrix:
            raise InputError(
                "--traces and --imatrix tell whether a checkpoint's edit is followed; a served variant has none, its server edits"
            )
        _verify_served(variant, base, as_json)
        return
    model, revision = (base, None) if base else base_of(variant)
    found = resolve_model(model, revision, say=say)
    result = verify(variant, found.folder, full=full, base_id=(found.repo_id, found.revision), progress=byte_progress)
    opened = open_model(variant)
    record = read_record(opened.config, opened.source.name, opened.config_place)
    runtimes = safety(record, opened.layout, opened.format)
    selections = check_selections(record, opened.layout, imatrix, base_imatrix)
    proof = what_is_proved(record, opened.layout)
    observed = None if traces is None else _observe(traces, variant, record)
    if as_json:
        document = result.to_json() | {"runtimes": runtimes, "proof": asdict(proof)}
        if observed is not None:
            document["traces"] = _as_json(observed)
        if imatrix is not None:
            document["selections"] = [asdict(line) for line in selections]
        print(printed_json(json.dumps(document, indent=2, ensure_ascii=False)))
    else:
        seen = [] if observed is None else _lines(observed)
        show([*verify_lines(result, runtimes), *selection_lines(selections), *proof_lines(proof), *seen])


def _observe(traces: Path, variant: Path, record: "VariantRecord") -> "Selections":
    """The selections of the suppressed experts in traces of the variant.

    Raises:
        VerificationError: a reroute that rules them out shows one.
    """
    from ftri.traces.selections import selections_in_traces
    from rewriter.errors import VerificationError
    from rewriter.semantics import SUPPRESS

    suppressed = [one for one in record.edits_in_force() if one.action == SUPPRESS]
    observed = selections_in_traces(traces, variant, [(one.layer, one.expert) for one in suppressed])
    for one in suppressed:
        count = observed.tokens_by_expert[one.layer, one.expert]
        if one.rules_out_selection and count:
            raise VerificationError(
                f"{traces}: {count} tokens select layer {one.layer} expert {one.expert}, expected none: the runtime that made"
                " these traces does not follow the router's edit"
            )
    return observed


def _as_json(observed: "Selections") -> dict[str, Any]:
    experts = [
        {"layer": layer, "expert": expert, "tokens": count}
        for (layer, expert), count in observed.tokens_by_expert.items()
    ]
    return {
        "responses": observed.num_responses,
        "tokens": observed.num_tokens,
        "selections": observed.num_selections,
        "responses_selecting": observed.num_responses_selecting,
        "bound_95": observed.bound,
        "experts": experts,
    }


def _lines(observed: "Selections") -> list[str]:
    """The selections for people."""
    lines = [
        f"  observed: {observed.num_selections} selections of the suppressed experts in {observed.num_responses:,} responses"
        f" ({observed.num_tokens:,} tokens), in {observed.num_responses_selecting} of the responses;"
        f" with 95 % confidence fewer than {observed.bound:.2%} of responses like these select one"
    ]
    for (layer, expert), count in observed.tokens_by_expert.items():
        if count:
            lines.append(f"    layer {layer} expert {expert}: {count} tokens ({count / observed.num_tokens:.3%})")
    return lines


def _is_served(variant: Path) -> bool:
    from rewriter.checkpoint.reader import CONFIG_NAME, Checkpoint
    from rewriter.edit.dial import is_served

    return (variant / CONFIG_NAME).is_file() and is_served(Checkpoint.open(variant).config)


def _verify_served(variant: Path, base: str | None, as_json: bool) -> None:
    """The same for a served variant, whose weights are all the base's."""
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.dial import read_served
    from rewriter.errors import InputError
    from rewriter.hub.models import resolve_model
    from rewriter.variant.write_served import verify_served

    named = read_served(Checkpoint.open(variant).config, variant.name)
    model, revision = (base, None) if base else (named.base_model, named.base_revision)
    if model is None:
        raise InputError(f"{variant}: was made from a folder, give it by --base")
    folder = resolve_model(model, revision, say=say).folder
    proof = verify_served(variant, folder)
    lines = [
        f"verified: {variant} has the weights and other files of {folder}, and its config but for the record",
        *proof.record.lines(),
        *([f"  not compared with anything: {', '.join(proof.not_compared)}"] if proof.not_compared else []),
    ]
    document = {
        "variant": str(variant),
        "base": str(folder),
        "mote": proof.record.to_block(),
        "not_compared": proof.not_compared,
    }
    if as_json:
        print(printed_json(json.dumps(document, indent=2, ensure_ascii=False)))
    else:
        show(lines)


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
