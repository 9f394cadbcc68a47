"""A command's options, written once: as the fields of a dataclass, each with its type, default and help.

    @dataclass(frozen=True)
    class Request:
        prompts: Annotated[str, Option("Prompts to answer.", panel="Prompts")]
        limit: Annotated[int | None, Option("At most this many.", panel="Prompts", metavar="N")] = None

    @command(make_app(), Request)
    def ask(request: Request, words: list[str]) -> None:
        "Ask a model."

The same names are the keys of a TOML file given as `--config FILE`; what the command line says wins.
"""

import difflib
import inspect
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from rewriter.console import QUIET_HELP, VERBOSE_HELP, Application
from rewriter.errors import InputError
from rewriter.small_file import MAX_CARD_BYTES, read_small

Request = TypeVar("Request")
GENERAL = "General"
# What typer gives every application.
COMPLETION = frozenset({"--install-completion", "--show-completion"})


@dataclass(frozen=True)
class Option:
    """What a field's type and default do not say of an option.

    name: where it is not the field's; a flag's name may say the contrary of a field that is True by default (`no-repeat`).
    parse: from the option's text (or a TOML list or table written as such) to the field's value; raises InputError.
    """

    help: str
    panel: str = GENERAL
    name: str | None = None
    short: str | None = None
    metavar: str | None = None
    parse: Callable[[str, str], Any] | None = None


@dataclass(frozen=True)
class Parameter:
    """One option as the command line has it: its field's name, its own name, and the type that is read."""

    field: str
    name: str
    option: Option
    kind: type
    many: bool
    optional: bool
    default: Any

    @property
    def is_inverted(self) -> bool:
        """Whether the flag takes back what the field has by default."""
        return self.kind is bool and self.default is True

    def signature(self) -> inspect.Parameter:
        """The parameter as typer reads it."""
        option = self.option
        declared = [f"--{self.name}"] if option.short is None else [option.short, f"--{self.name}"]
        annotation: Any = list[self.kind] if self.many else self.kind  # type: ignore[name-defined]
        default: Any = inspect.Parameter.empty if self.default is MISSING else self.shown_default()
        if self.optional or (self.many and not self.default):
            annotation, default = annotation | None, None
        info = typer.Option(
            *declared,
            help=option.help,
            metavar=option.metavar,
            rich_help_panel=option.panel,
            show_default=default not in (None, "", "{}", inspect.Parameter.empty),
        )
        return inspect.Parameter(
            self.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
        )

    def shown_default(self) -> Any:
        """The default as the command line would give it."""
        if self.is_inverted:
            return False
        if self.option.parse is None:
            return self.default
        if isinstance(self.default, dict):
            return json.dumps(self.default)
        return ",".join(map(str, self.default)) if isinstance(self.default, tuple | list) else self.default

    def value(self, given: Any) -> Any:
        """The field's value from what was given. Raises: InputError."""
        if self.is_inverted:
            return not given
        if self.many:
            return tuple(given or ())
        if self.option.parse is not None and isinstance(given, str):
            return self.option.parse(f"--{self.name}", given)
        return given

    def from_toml(self, file: Path, given: Any) -> Any:
        """A TOML value as the command line would have given it. Raises: InputError for a value of another type."""
        if self.many:
            if isinstance(given, dict):
                given = [f"{name}={json.dumps(value)}" for name, value in given.items()]
            if isinstance(given, list) and all(isinstance(one, str) for one in given):
                return given
            raise self._refused(file, given, "a list of texts")
        if self.option.parse is not None and not isinstance(given, bool):
            if isinstance(given, list):
                return ",".join(map(str, given))
            return json.dumps(given) if isinstance(given, dict) else str(given)
        kinds = {int: "a whole number", float: "a number", bool: "true or false"}
        allowed: tuple[type, ...] = {float: (int, float), Path: (str,)}.get(self.kind, (self.kind,))
        if not isinstance(given, allowed) or (isinstance(given, bool) and self.kind is not bool):
            raise self._refused(file, given, kinds.get(self.kind, "a text"))
        return given

    def _refused(self, file: Path, given: Any, expected: str) -> InputError:
        return InputError(f"{file}: {self.name} is {str(given)[:80]!r}, expected {expected}")


def parameters_of(request: type) -> list[Parameter]:
    """The options of a request type, those of nested dataclasses in their place."""
    hints = get_type_hints(request, include_extras=True)
    found = []
    for one in fields(request):
        hint = hints[one.name]
        if is_dataclass(hint):
            found += parameters_of(hint)  # type: ignore[arg-type]
        elif get_origin(hint) is Annotated:
            found.append(_parameter(one, hint))
    return found


def _parameter(one: "Field[Any]", hint: Any) -> Parameter:
    kind, option = get_args(hint)[:2]
    optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
    if optional:
        kind = next(part for part in get_args(kind) if part is not NoneType)
    many = option.parse is None and get_origin(kind) in (tuple, list)
    if many:
        kind = get_args(kind)[0]
    if option.parse is not None:
        kind = str
    name = option.name or one.name.replace("_", "-")
    default = one.default if one.default_factory is MISSING else one.default_factory()
    return Parameter(one.name, name, option, kind, many, optional, default)


def build(request: type[Request], values: Mapping[str, Any]) -> Request:
    """A request, and those nested in it, from values by field name. Raises: InputError."""
    hints = get_type_hints(request, include_extras=True)
    own = {}
    for one in fields(request):  # type: ignore[arg-type]
        hint = hints[one.name]
        if is_dataclass(hint):
            own[one.name] = build(hint, values)  # type: ignore[arg-type]
        elif get_origin(hint) is Annotated:
            own[one.name] = _parameter(one, hint).value(values[one.name])
    return request(**own)


def read_config(file: Path, parameters: list[Parameter]) -> dict[str, Any]:
    """Options from a TOML file, by field name, as the command line would have given them.

    Raises: InputError when the file cannot be read or is no TOML, names an option that there is not, or has a value of
    another type.
    """
    try:
        document = tomllib.loads(read_small(file, MAX_CARD_BYTES).decode())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}), expected a TOML file of options") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file}: is not TOML ({str(error) or type(error).__name__})") from None
    by_name = {parameter.name: parameter for parameter in parameters}
    found = {}
    for key, given in document.items():
        parameter = by_name.get(key.replace("_", "-"))
        if parameter is None:
            near = difflib.get_close_matches(key.replace("_", "-"), by_name, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see --help for the options"
            raise InputError(f"{file}: {key[:80]!r} is not an option; {hint}")
        found[parameter.field] = parameter.from_toml(file, given)
    return found


class PanelCommand(TyperCommand):
    """Plain help with the options under the titles of their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a panel, in the order in which panels first occur; what has none comes last."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or GENERAL, []).append(record)
        panels[GENERAL] = panels.pop(GENERAL, [])
        group = ctx.parent.command if ctx.parent is not None else None
        stands_for = group if isinstance(group, DefaultCommandGroup) and group.default is self else None
        if stands_for is not None:
            panels[GENERAL] += stands_for.completion(ctx.parent)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if stands_for is not None:
            with formatter.section("Other commands"):
                formatter.write_dl(stands_for.others(str(ctx.parent.info_name)))


class DefaultCommandGroup(TyperGroup):
    """A group whose first command may be left out: `mote-ftri TRACES` is `mote-ftri find TRACES`."""

    @property
    def default(self) -> Any:
        """The command that was declared first."""
        return next(iter(self.commands.values()))

    def others(self, name: str) -> list[tuple[str, str]]:
        """The commands that have to be named, each with its purpose; `name` is the group's."""
        commands = list(self.commands.items())[1:]
        return [(f"{name} {word}", command.get_short_help_str(limit=120)) for word, command in commands]

    def completion(self, ctx: Any) -> list[tuple[str, str]]:
        """The group's own options, which teach a shell to complete, as its default command's help names them."""
        own = [one for one in self.get_params(ctx) if COMPLETION.intersection(one.opts)]
        return [record for one in own if (record := one.get_help_record(ctx)) is not None]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before arguments that do not begin with a command."""
        own = {*self.commands, *COMPLETION}
        if (not args and not ctx.resilient_parsing) or (args and args[0] not in own):
            args = [str(self.default.name), *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the first word: a command, or what the default command takes."""
        return [*super().shell_complete(ctx, incomplete), *self.default.shell_complete(ctx, incomplete)]


# Declared by the application for every command, and options of a file like the others.
GENERAL_PARAMETERS = [
    Parameter(name, name, Option(text), bool, many=False, optional=False, default=False)
    for name, text in (("quiet", QUIET_HELP), ("verbose", VERBOSE_HELP))
]


def command(
    app: Application, request: type[Request], *, epilog: str | None = None, pass_on: bool = False
) -> Callable[[Callable[[Request, list[str]], None]], Callable[[Request, list[str]], None]]:
    """Make a function of (request, words) a command of `app`; `words` are those that `pass_on` leaves to the function."""

    def declare(function: Callable[[Request, list[str]], None]) -> Callable[[Request, list[str]], None]:
        parameters = parameters_of(request)

        def take_config(context: typer.Context, value: Path | None) -> Path | None:
            if value is not None:
                context.default_map = {
                    **(context.default_map or {}),
                    **read_config(value, parameters + GENERAL_PARAMETERS),
                }
            return value

        def run(context: typer.Context, config: Path | None = None, **values: Any) -> None:
            function(build(request, values), list(context.args))

        info = typer.Option(
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=take_config,
            show_default=False,
            help="Options from a TOML file, each by its name; what the command line says wins.",
        )
        own = [
            inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            inspect.Parameter(
                "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, info]
            ),
        ]
        signature = [own[0], *(parameter.signature() for parameter in parameters), own[1]]
        run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in signature}
        run.__doc__ = function.__doc__
        settings = {"allow_extra_args": True, "ignore_unknown_options": True} if pass_on else {}
        app.command(function.__name__, cls=PanelCommand, epilog=epilog, context_settings=settings)(run)
        return function

    return declare
