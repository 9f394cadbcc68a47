"""The edge shared by every command line: one way to build it, one way to fail."""

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from rewriter.errors import MoteError


def make_app(**keywords: Any) -> typer.Typer:
    """Build a typer application with plain help texts and no shell-completion options."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **keywords)


def say(message: str) -> None:
    """Write one line of talk to stderr; stdout is kept for data."""
    print(message, file=sys.stderr, flush=True)


def run(app: Callable[[], Any]) -> None:
    """Run a command line; a MoteError becomes one sentence on stderr and exit code 1, Ctrl-C exit code 130."""
    try:
        app()
    except MoteError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); point stdout at nothing so that the exit flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
