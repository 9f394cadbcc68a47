"""The edge shared by every command line: how it is built, talks, shows progress, ends and fails."""

import inspect
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from rewriter.errors import MoteError, printable, shortened
from rewriter.missing import missing_package
from rewriter.redaction import redact

Progress = Callable[[int], None]  # told of every run of bytes done

PROGRESS_DELAY_SECONDS = 1.0
# A bar cannot be drawn in a log or read out; there, a sentence comes this often.
SENTENCE_EVERY_SECONDS = 60.0
QUIET_HELP = "Say nothing but results, warnings and errors; show no progress."
VERBOSE_HELP = "Say when things happen, what the inference engine logs, and where an error arose."
# What a command ends with beside 0; 2 is typer's, for a command line that it cannot read.
FAILED, UNREADABLE, INTERRUPTED, READER_GONE = 1, 2, 130, 141
# Longer than any line of our own; what makes one longer came from a file, a server or the command line.
NUM_LETTERS_OF_A_LINE = 2000
# What typer raises for words that it cannot read; it exports only an error that follows from it.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


@dataclass
class Talk:
    """How much a command says, set anew whenever one begins."""

    quiet: bool = False
    verbose: bool = False
    began: float = field(default_factory=time.monotonic)


_talk = Talk()


class Application(typer.Typer):
    """A typer application whose every command also takes --quiet and --verbose, and ends as all others do."""

    def command(self, name: str | None = None, **keywords: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # type: ignore[override]
        """As typer's."""
        declare = super().command(name, **keywords)

        def take(function: Callable[..., Any]) -> Callable[..., Any]:
            declare(_with_general_options(function))
            return function

        return take


def make_app(**keywords: Any) -> Application:
    """Build a typer application with plain help texts and completion for the user's shell."""
    return Application(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False, **keywords)


def _with_general_options(function: Callable[..., Any]) -> Callable[..., None]:
    """A command's function with the options that all commands have."""

    @wraps(function)
    def run_command(*words: Any, quiet: bool = False, verbose: bool = False, **values: Any) -> None:
        global _talk
        _talk = Talk(quiet, verbose)
        if quiet:
            # Read by the Hub's client when it is imported, for the bars of its own downloads.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if verbose:
            # vLLM reads it when it is imported, in whichever of its processes.
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
        # Caught here, since typer would turn both into other exit codes and say nothing.
        try:
            function(*words, **values)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _say_interrupted()
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away (`| head`); point stdout at nothing so that the exit flush stays quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(READER_GONE) from None

    hints = get_type_hints(function, include_extras=True)
    added = {
        "quiet": Annotated[bool, typer.Option("--quiet", help=QUIET_HELP, rich_help_panel="General")],
        "verbose": Annotated[bool, typer.Option("-v", "--verbose", help=VERBOSE_HELP, rich_help_panel="General")],
    }
    own = [one.replace(annotation=hints[name]) for name, one in inspect.signature(function).parameters.items()]
    run_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        own
        + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for name, annotation in added.items()
        ]
    )
    run_command.__annotations__ = hints | added
    return run_command


def line_for_people(text: str) -> str:
    """One line whatever the text holds: names and labels are of files and servers, and may neither steer a terminal, nor look
    like a line of our own, nor fill the screen."""
    return shortened(printable(text), NUM_LETTERS_OF_A_LINE)


def show(lines: Iterable[str]) -> None:
    """Write a result for people to stdout, each line as `line_for_people`."""
    print("\n".join(map(line_for_people, lines)))


def say(message: str, *, always: bool = False) -> None:
    """Write a line of talk to stderr; stdout is kept for data. With --quiet, only warnings, errors and what is `always` said."""
    if _talk.quiet and not always and not message.startswith(("warning: ", "error: ")):
        return
    when = f"[{time.monotonic() - _talk.began:8.1f} s] " if _talk.verbose else ""
    print(f"{when}{line_for_people(message)}", file=sys.stderr, flush=True)


def size_text(size_bytes: int) -> str:
    """A number of bytes for people, in binary units: 312 B, 4.01 GiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def duration_text(seconds: float) -> str:
    """Seconds in the largest unit that leaves a readable number."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def is_drawn() -> bool:
    """Whether progress is drawn as bars: on a terminal, and not when quiet."""
    return sys.stderr.isatty() and not _talk.quiet


def progress_bar(total: int | None, description: str, **settings: Any) -> Any:
    """A tqdm bar on stderr where bars are drawn: elsewhere its lines would mix with sentences that scripts read."""
    from tqdm import tqdm

    return tqdm(total=total, desc=line_for_people(description), disable=not is_drawn(), **settings)


@contextmanager
def byte_progress(total_bytes: int, description: str = "shards") -> Iterator[Progress]:
    """A bar over bytes on stderr, shown when something takes long; yields the function that takes the bytes done."""
    settings = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "delay": PROGRESS_DELAY_SECONDS, "leave": False}
    with progress_bar(total_bytes, description, **settings) as bar:
        yield bar.update


def run(app: Callable[..., Any]) -> None:
    """Run a command line; a MoteError, or a package that is not installed, becomes one sentence on stderr and exit code 1."""
    # Deprecations within the libraries that an engine pulls in are not the user's to mend.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        # No command colours its words, whatever NO_COLOR says; not standalone, since typer would end in sentences of its own.
        sys.exit(app(color=False, standalone_mode=False) or 0)
    except MoteError as error:
        _fail(str(error))
    except OSError as error:
        # Where something is read or written, the sentence says what for; this is for what no such place foresaw.
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else os.path.basename(sys.argv[0])
        what = " ".join(getattr(error, "format_message", error.__str__)().split()).removesuffix(".")
        say(f"error: {shortened(printable(redact(what)))}; see {name} --help")
        sys.exit(UNREADABLE)
    except typer.Abort:
        _fail("ended by an answer that is none")
    except ModuleNotFoundError as error:
        sentence = missing_package(error.name or "")
        if sentence is None:
            raise
        _fail(sentence)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)


def _fail(message: str) -> None:
    if _talk.verbose:
        for line in traceback.format_exc().splitlines():
            print(printable(redact(line)), file=sys.stderr)
    say(f"error: {MoteError(message)}")
    sys.exit(FAILED)


def _say_interrupted() -> None:
    say("interrupted; the same command begins anew, or goes on where it had got to", always=True)
