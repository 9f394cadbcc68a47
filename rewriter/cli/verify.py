"""mote-verify: parses the command line, calls the library, prints."""

import json
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
        typer.Option(metavar="MODEL", help="Folder or Hub id of the base; the one that OUT names if not given."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every byte, also of shards that are the base's own files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prove that a variant differs from its base only where its plan says, and there as it says."""
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.cli.text import verify_lines
    from rewriter.edit.record import read_record
    from rewriter.hub.models import resolve_model
    from rewriter.variant.runtimes import safety
    from rewriter.variant.verify import base_of, verify

    model, revision = (base, None) if base else base_of(variant)
    result = verify(variant, resolve_model(model, revision, say=say).folder, full=full, progress=byte_progress)
    opened = Checkpoint.open(variant)
    runtimes = safety(read_record(opened.config, str(variant)), opened.layout)
    if as_json:
        print(json.dumps(result.to_json() | {"runtimes": runtimes}, indent=2, ensure_ascii=False))
    else:
        print("\n".join(verify_lines(result, runtimes)))


def main() -> None:
    """Console entry point."""
    run(app)


if __name__ == "__main__":
    main()
