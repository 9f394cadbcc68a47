"""What is asked for: every option of mote-eval once, with its type, its default and its help. No heavy import."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from ftri.labels.think_formats import choose_format
from rewriter.command import Option
from rewriter.errors import InputError
from rewriter.semantics import BIAS_FREE_SEMANTICS, SEMANTICS, Semantics

Matching = Literal["uniform", "layer", "frequency"]
MATCHINGS: tuple[Matching, ...] = get_args(Matching)

INPUT = "What is asked, and where the results go"
SUBJECT = "Model and variants"
HELD_OUT = "Finding the experts on held-out prompts"
ANSWERS = "Answers"
CHANCE = "Comparisons with chance, and the number of experts"
DIVERGENCE = "Divergence on neutral prompts"
PROTECTION = "Protection and quality"
SERVERS = "Running servers in place of an engine"
OUTPUT = "Output"


def choices(allowed: tuple[str, ...]) -> Callable[[str, str], tuple[Any, ...]]:
    """Reads comma-separated words that must be among `allowed`, without repeats."""

    def parse(option: str, text: str) -> tuple[Any, ...]:
        words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        for word in words:
            if word not in allowed:
                raise InputError(f"{option} has {word!r}, expected {', '.join(allowed)}")
        if not words:
            raise InputError(f"{option} is empty, expected {', '.join(allowed)}")
        return tuple(words)

    return parse


def one_of(allowed: tuple[str, ...]) -> Callable[[str, str], Any]:
    """Reads one word of `allowed`."""

    def parse(option: str, text: str) -> Any:
        if text not in allowed:
            raise InputError(f"{option} is {text!r}, expected {' or '.join(allowed)}")
        return text

    return parse


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Comma-separated positive whole numbers. Raises InputError."""
    numbers = []
    for word in (word.strip() for word in text.split(",") if word.strip()):
        if not (word.isascii() and word.isdecimal()) or int(word) < 1:
            raise InputError(f"{option} has {word!r}, expected positive whole numbers such as 1,2,5,10")
        numbers.append(int(word))
    return tuple(numbers)


def json_object(option: str, text: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{option} is not JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise InputError(f"{option} is nested too deeply to be meant") from None
    if not isinstance(value, dict):
        raise InputError(f'{option} is a JSON {type(value).__name__}, expected an object such as {{"top_k": 20}}')
    return value


@dataclass(frozen=True)
class RunOptions:
    """Everything that changes what is measured; kept in the results as it was."""

    semantics: Annotated[
        tuple[Semantics, ...],
        Option(
            "Comma-separated; the first is the one that controls, sweep and safety are about. Where the routers have no bias,"
            " 'reroute (centroid)', which a checkpoint can hold, is among them.",
            SUBJECT,
            parse=choices(BIAS_FREE_SEMANTICS),
        ),
    ] = SEMANTICS
    samples: Annotated[int, Option("Answers per prompt.", ANSWERS)] = 1
    max_tokens: Annotated[int, Option("Longest answer.", ANSWERS)] = 1024
    temperature: Annotated[float, Option("0 takes the likeliest token.", ANSWERS)] = 0.0
    top_p: Annotated[float, Option("Nucleus of the sampling.", ANSWERS)] = 1.0
    seed: Annotated[int, Option("Of sampling, splits, random sets and bootstraps.", ANSWERS)] = 0
    label_cut: Annotated[bool, Option("Label cut-off answers by what is there, where that decides.", ANSWERS)] = False
    repeat_base: Annotated[
        bool, Option("Leave out the second run of the base (the A/A flip rate).", CHANCE, name="no-repeat")
    ] = True
    controls: Annotated[int, Option("Random expert sets of each matching; 0 for none.", CHANCE, metavar="N")] = 99
    control_matching: Annotated[
        tuple[Matching, ...],
        Option(
            "Comma-separated: uniform, layer, frequency (layer and activation frequency).",
            CHANCE,
            parse=choices(MATCHINGS),
        ),
    ] = MATCHINGS
    control_stop: Annotated[
        int,
        Option("A matching ends when so many random sets have moved as much as the variant.", CHANCE, metavar="N"),
    ] = 10
    whole_controls: Annotated[
        bool,
        Option(
            "Let random sets and --sweep-k write whole answers, not only as much as decides their label; shows their damage.",
            CHANCE,
        ),
    ] = False
    control_prompts: Annotated[int, Option("Prompts at risk that each random set answers.", CHANCE, metavar="N")] = 200
    control_others: Annotated[int, Option("Other prompts that each random set answers.", CHANCE, metavar="N")] = 50
    sweep_k: Annotated[
        tuple[int, ...],
        Option("Also the first K experts alone, for each K.", CHANCE, metavar="K,K,...", parse=whole_numbers),
    ] = ()
    kl_tokens: Annotated[int, Option("Answer tokens per neutral prompt.", DIVERGENCE)] = 64
    kl_listed: Annotated[
        int,
        Option("Likeliest tokens compared per position; -1 for the whole vocabulary (exact).", DIVERGENCE),
    ] = 128
    neutral_prompts: Annotated[
        int, Option("How many neutral prompts.", DIVERGENCE, name="neutral-limit", metavar="N")
    ] = 32

    def check(self) -> None:
        """Raises: InputError for values that cannot be meant."""
        if self.samples > 1 and self.temperature == 0:
            raise InputError(
                f"--samples {self.samples} at --temperature 0 gives the same answer each time; set a temperature"
            )
        least = {
            "samples": 1,
            "max_tokens": 1,
            "kl_tokens": 1,
            "control_prompts": 1,
            "controls": 0,
            "control_others": 0,
            "control_stop": 1,
        }
        for name, number in least.items():
            if getattr(self, name) < number:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least {number}")
        if self.neutral_prompts < 1:
            raise InputError(f"--neutral-limit is {self.neutral_prompts}, expected at least 1")
        if self.kl_listed < 1 and self.kl_listed != -1:
            raise InputError(
                f"--kl-listed is {self.kl_listed}, expected a positive number, or -1 for the whole vocabulary"
            )
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature is {self.temperature:g}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p:g}, expected more than 0 and at most 1")
        if not self.semantics:
            raise InputError(f"--semantics is empty, expected some of {', '.join(SEMANTICS)}")

    def recorded(self) -> dict[str, Any]:
        """The options as the results hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class EvalRequest:
    """What `mote-eval` was asked for."""

    prompts: Annotated[
        str,
        Option(
            "Prompts: a built-in set, a .jsonl, .csv or .parquet file, or hub:ORG/NAME[@REV][/FILE][:COLUMN].", INPUT
        ),
    ]
    output: Annotated[Path, Option("Folder for results.json, report.html and every transcript.", INPUT, short="-o")]
    column: Annotated[str | None, Option("Column of the prompts' text.", INPUT)] = None
    limit: Annotated[int | None, Option("At most N prompts of each set, evenly spread.", INPUT, metavar="N")] = None
    model: Annotated[str | None, Option("Base model: folder or Hub id.", SUBJECT)] = None
    revision: Annotated[str | None, Option("Hub revision of the base.", SUBJECT)] = None
    suppress: Annotated[
        str | None, Option("Expert set to switch off: a JSON file, or preset:NAME.", SUBJECT, metavar="FILE")
    ] = None
    stimulate: Annotated[str | None, Option("Expert set to switch on.", SUBJECT, metavar="FILE")] = None
    strength: Annotated[
        float | None,
        Option(
            "Suppressed experts keep 1 - strength of their output, as mote-rewrite --strength; drop is measured first then.",
            SUBJECT,
            metavar="0..1",
        ),
    ] = None
    gain: Annotated[
        str | None,
        Option("Gain of stimulated experts, as mote-rewrite --gain.", SUBJECT, metavar="auto|mean|NUMBER"),
    ] = None
    traces: Annotated[
        Path | None, Option("Traces with weights for --gain auto, as mote-rewrite --traces.", SUBJECT, metavar="DIR")
    ] = None
    variants: Annotated[
        tuple[str, ...],
        Option(
            "Another variant to compare: a folder of mote-rewrite or an expert set; repeatable.",
            SUBJECT,
            metavar="DIR_OR_SET",
        ),
    ] = ()
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
    target: Annotated[
        str | None, Option("Label to count, if the expert set's behavior names none.", SUBJECT, metavar="LABEL")
    ] = None
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
        Option(
            "Another way to give an argument of vLLM's engine, which is otherwise an option of its own"
            " (--tensor-parallel-size 8); repeatable.",
            SUBJECT,
            metavar="NAME=VALUE",
        ),
    ] = ()
    split: Annotated[
        float | None,
        Option("Find the experts on this share of the prompts, test on the rest.", HELD_OUT, metavar="SHARE"),
    ] = None
    split_by: Annotated[
        str | None, Option("Keep all prompts of one place, subject, ... on one side.", HELD_OUT, metavar="FACTOR")
    ] = None
    find: Annotated[
        str | None,
        Option("With --split: the class, as mote-ftri --behavior [refused].", HELD_OUT, metavar="BEHAVIOR"),
    ] = None
    find_k: Annotated[int, Option("With --split: how many experts to find.", HELD_OUT, metavar="K")] = 10
    stimulate_found: Annotated[bool, Option("With --split: switch the found experts on instead of off.", HELD_OUT)] = (
        False
    )
    options: RunOptions = field(default_factory=RunOptions)
    neutral: Annotated[
        str | None,
        Option("Prompts for the KL divergence [default: a built-in set].", DIVERGENCE, name="neutral-prompts"),
    ] = None
    harm: Annotated[
        str | None, Option("Prompts that should be refused: file or hub:ORG/NAME.", PROTECTION, metavar="SET")
    ] = None
    xstest: Annotated[str | None, Option("XSTest: file or hub:walledai/XSTest.", PROTECTION, metavar="SET")] = None
    mt_bench: Annotated[
        str | None, Option("MT-Bench questions: question.jsonl or hub:ORG/NAME.", PROTECTION, metavar="SET")
    ] = None
    references: Annotated[
        str | None, Option("MT-Bench reference answers (gpt-4.jsonl).", PROTECTION, metavar="FILE")
    ] = None
    judge_prompts: Annotated[str | None, Option("FastChat's judge_prompts.jsonl.", PROTECTION, metavar="FILE")] = None
    judge_url: Annotated[str | None, Option("OpenAI-compatible server of the judge.", PROTECTION, metavar="URL")] = None
    judge_model: Annotated[str | None, Option("Name of the judge [default: the only one served].", PROTECTION)] = None
    judge_key: Annotated[
        str | None, Option("Environment variable with the judge's API key.", PROTECTION, metavar="VARIABLE")
    ] = None
    base_url: Annotated[str | None, Option("Compare running servers: the base.", SERVERS, metavar="URL")] = None
    tuned_url: Annotated[str | None, Option("Compare running servers: the variant.", SERVERS, metavar="URL")] = None
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
    concurrency: Annotated[int, Option("Requests to a server at a time.", SERVERS)] = 16
    attempts: Annotated[int, Option("Tries per request before giving up.", SERVERS)] = 6
    timeout: Annotated[float, Option("For one answer of a server.", SERVERS, metavar="SECONDS")] = 600.0
    # What --engine-argument and vLLM's own options came to.
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    card: Annotated[
        Path | None, Option("Variant folder whose model card takes up the results.", OUTPUT, metavar="DIR")
    ] = None

    @property
    def is_served(self) -> bool:
        """Whether running servers answer in place of an engine here."""
        return self.base_url is not None

    def check(self) -> None:
        """Raise InputError for values that cannot be meant, and for options that do not go together."""
        self.options.check()
        choose_format(self.think_format, None)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}, expected at least 1")
        for name, number in (("find-k", self.find_k), ("concurrency", self.concurrency), ("attempts", self.attempts)):
            if number < 1:
                raise InputError(f"--{name} is {number}, expected at least 1")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"--timeout is {self.timeout:g}, expected seconds above 0")
        if (self.base_url is None) != (self.tuned_url is None):
            raise InputError(
                "--base-url and --tuned-url belong together: give the variant's server too, or --model and --suppress without"
                " servers"
            )
        if (self.strength, self.gain, self.traces) != (None, None, None) and (self.split is not None or self.is_served):
            raise InputError(
                "--strength, --gain and --traces are of given experts in an engine, expected --suppress or --stimulate with them"
            )
        if self.is_served:
            self._check_served()
        else:
            self._check_live()
        if self.mt_bench is not None and (self.judge_url is None or self.judge_prompts is None):
            raise InputError("--mt-bench needs --judge-url and --judge-prompts FILE (FastChat's judge_prompts.jsonl)")

    def _check_served(self) -> None:
        if self.split is not None or self.variants:
            raise InputError(
                "--split and --variants need --model without --base-url: a running server's routers cannot be edited"
            )
        if self.api == "completions" and self.model is None:
            raise InputError(
                "--api completions renders prompts itself and needs --model for the chat template; or use --api chat"
            )

    def _check_live(self) -> None:
        if self.model is None:
            raise InputError(
                "nothing to evaluate: give --model with --suppress or --stimulate, or --base-url and --tuned-url"
            )
        if self.split is None and not (self.suppress or self.stimulate):
            raise InputError("no experts: give --suppress FILE, --stimulate FILE, or --split to find them")
        if self.split is not None and (self.suppress or self.stimulate):
            raise InputError("--split finds the experts itself, expected no --suppress or --stimulate beside it")
