"""What is asked for: every option of `mote-eval ask` once, with its type, its default and its help. No heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from eval.ask.question import MOST_SEED, MOST_TEMPERATURE, MOST_TOKENS
from eval.options import SERVERS, json_object, one_of
from ftri.labels.think_formats import choose_format
from rewriter.command import Option
from rewriter.errors import InputError
from rewriter.semantics import BIAS_FREE_SEMANTICS, REROUTE, Semantics

SUBJECT = "Model and experts"
ANSWERS = "Answers, when the page opens"
PAGE = "The page"


@dataclass(frozen=True)
class AskRequest:
    """What `mote-eval ask` was asked for."""

    model: Annotated[str | None, Option("Base model: folder or Hub id.", SUBJECT)] = None
    revision: Annotated[str | None, Option("Hub revision of the base.", SUBJECT)] = None
    suppress: Annotated[
        str | None, Option("Expert set to switch off: a JSON file, or preset:NAME.", SUBJECT, metavar="FILE")
    ] = None
    stimulate: Annotated[str | None, Option("Expert set to switch on.", SUBJECT, metavar="FILE")] = None
    semantics: Annotated[
        Semantics,
        Option(
            "How experts are switched off when the page opens; it offers what else the model can bear.",
            SUBJECT,
            metavar="reroute|drop|drop-renorm",
            parse=one_of(BIAS_FREE_SEMANTICS),
        ),
    ] = REROUTE
    layer_index: Annotated[
        Literal["model", "moe"] | None,
        Option(
            "How the sets count layers, if they do not say.",
            SUBJECT,
            metavar="model|moe",
            parse=one_of(("model", "moe")),
        ),
    ] = None
    any_model: Annotated[bool, Option("Use an expert set that says it is of another model.", SUBJECT)] = False
    chat_template: Annotated[
        Path | None, Option("Chat template in place of the model's own.", SUBJECT, metavar="FILE")
    ] = None
    think_format: Annotated[
        str | None,
        Option(
            "How the model marks its thinking (harmony, gemma4, mistral, think, ...) [default: as its family does].",
            SUBJECT,
            metavar="NAME",
        ),
    ] = None
    engine_argument: Annotated[
        tuple[str, ...],
        Option("As of mote-eval: another way to give an argument of vLLM's engine.", SUBJECT, metavar="NAME=VALUE"),
    ] = ()
    base_url: Annotated[str | None, Option("Ask running servers: the base.", SERVERS, metavar="URL")] = None
    tuned_url: Annotated[str | None, Option("Ask running servers: the variant.", SERVERS, metavar="URL")] = None
    base_model: Annotated[
        str | None, Option("Name of the base at its server [default: the only one served].", SERVERS)
    ] = None
    tuned_model: Annotated[str | None, Option("Name of the variant at its server.", SERVERS)] = None
    api_key: Annotated[
        str | None, Option("Environment variable with the servers' API key.", SERVERS, metavar="VARIABLE")
    ] = None
    api: Annotated[
        Literal["completions", "chat"],
        Option(
            "completions: prompts rendered here with --model's template, raw text back.",
            SERVERS,
            metavar="completions|chat",
            parse=one_of(("completions", "chat")),
        ),
    ] = "completions"
    extra_body: Annotated[
        dict[str, Any],
        Option("More fields for every request to the servers.", SERVERS, metavar="JSON", parse=json_object),
    ] = field(default_factory=dict)
    timeout: Annotated[float, Option("For more of an answer from a server.", SERVERS, metavar="SECONDS")] = 600.0
    max_tokens: Annotated[int, Option("Longest answer.", ANSWERS)] = 512
    temperature: Annotated[float, Option("0 takes the likeliest token.", ANSWERS)] = 0.0
    seed: Annotated[int, Option("Of sampling, alike for base and variant.", ANSWERS)] = 0
    port: Annotated[int | None, Option("Port on 127.0.0.1 [default: a free one].", PAGE, metavar="N")] = None
    # What --engine-argument and vLLM's own options came to.
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_served(self) -> bool:
        """Whether running servers answer in place of an engine here."""
        return self.base_url is not None

    def check(self) -> None:
        """Raise InputError for values that cannot be meant, and for options that do not go together."""
        choose_format(self.think_format, None)
        limits = {
            "port": (0, 65535),
            "max_tokens": (1, MOST_TOKENS),
            "temperature": (0, MOST_TEMPERATURE),
            "seed": (0, MOST_SEED),
        }
        for name, (low, high) in limits.items():
            given = getattr(self, name)
            if given is not None and not low <= given <= high:
                raise InputError(f"--{name.replace('_', '-')} is {given}, expected {low} to {high}")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"--timeout is {self.timeout:g}, expected seconds above 0")
        if (self.base_url is None) != (self.tuned_url is None):
            raise InputError("--base-url and --tuned-url belong together, expected both or neither")
        if self.is_served:
            if self.api == "completions" and self.model is None:
                raise InputError(
                    "--api completions renders prompts itself and needs --model for the chat template; or use --api chat"
                )
        elif self.model is None:
            raise InputError("nobody to ask: give --model with --suppress, or --base-url and --tuned-url")
        elif not (self.suppress or self.stimulate):
            raise InputError("no experts: give --suppress FILE or --stimulate FILE")
