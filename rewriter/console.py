"""The edge shared by every command line: one way to build it, to fail, to show progress and to write a size."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from rewriter.errors import MoteError, printable

Progress = Callable[[int], None]  # told of every run of bytes done

PROGRESS_DELAY_SECONDS = 1.0


def make_app(**keywords: Any) -> typer.Typer:
    """Build a typer application with plain help texts and no shell-completion options."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **keywords)


def say(message: str) -> None:
    """Write one line of talk to stderr; stdout is kept for data."""
    print(message, file=sys.stderr, flush=True)


def size_text(size_bytes: int) -> str:
    """A number of bytes for people, in binary units: 312 B, 4.01 GiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


@contextmanager
def byte_progress(total_bytes: int, description: str = "shards") -> Iterator[Progress]:
    """A bar over bytes on stderr, shown when something takes long; yields the function that takes the bytes done."""
    from tqdm import tqdm

    with tqdm(
        total=total_bytes,
        disable=None,  # only on a terminal: elsewhere its lines would mix with the sentences that scripts read
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=PROGRESS_DELAY_SECONDS,
        desc=description,
        leave=False,
    ) as bar:
        yield bar.update


def run(app: Callable[[], Any]) -> None:
    """Run a command line; a MoteError becomes one sentence on stderr and exit code 1, Ctrl-C exit code 130."""
    try:
        app()
    except MoteError as error:
        # Names from files and words of servers are in it: nothing of them may steer a terminal.
        say("\n".join(map(printable, f"error: {error}".splitlines())))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); point stdout at nothing so that the exit flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
