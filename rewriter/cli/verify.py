"""mote-verify: parses the command line, calls the library, prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rewriter.console import byte_progress, make_app, run, say

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
    full: Annotated[
        bool, typer.Option("--full", help="Read every byte, also of shards that are the base's own files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prove that a variant differs from its base only where its plan says, and there as it says."""
    from rewriter.checkpoint.kinds import open_model
    from rewriter.cli.text import selection_lines, verify_lines
    from rewriter.edit.record import read_record
    from rewriter.hub.models import resolve_model
    from rewriter.variant.runtimes import safety
    from rewriter.variant.selections import check_selections
    from rewriter.variant.verify import base_of, verify

    model, revision = (base, None) if base else base_of(variant)
    found = resolve_model(model, revision, say=say)
    result = verify(variant, found.folder, full=full, base_id=(found.repo_id, found.revision), progress=byte_progress)
    opened = open_model(variant)
    record = read_record(opened.config, opened.source.name, opened.config_place)
    runtimes = safety(record, opened.layout, opened.format)
    selections = check_selections(record, opened.layout, imatrix, base_imatrix)
    if as_json:
        document = result.to_json() | {"runtimes": runtimes}
        if imatrix is not None:
            document["selections"] = [asdict(line) for line in selections]
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*verify_lines(result, runtimes), *selection_lines(selections)]))


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
