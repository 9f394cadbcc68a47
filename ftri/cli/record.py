"""The command line `mote-record`: run prompts through unmodified vLLM and keep which experts every token selected."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rewriter.command import Option, command, parameters_of
from rewriter.console import make_app, run, say, show
from rewriter.errors import InputError
from rewriter.progress import PartProgress

if TYPE_CHECKING:
    from ftri.endpoint import Endpoint
    from ftri.record import RecordOptions, RecordPlan, RecordSummary
    from ftri.traces.schema import WeightsName

app = make_app()

PROMPTS, ANSWERS, MODEL, SERVER = "Prompts", "Answers", "Model", "A running server"
# Responses after which mote-record says how long the rest will take.
MEASURED_ON = 20
EPILOG = """Further options go to vLLM's engine and are checked by vLLM, for example --max-model-len 4096 or
--tensor-parallel-size 8; its short ones (-tp 8) belong behind a --.

The same command continues a run that was stopped or killed.

Example: mote-record --model deepseek-ai/DeepSeek-R1 --prompts what-happened:listed -o traces --max-model-len 8192
"""


@dataclass(frozen=True)
class CommandLine:
    """The options of mote-record, each with its help."""

    model: Annotated[str, Option("Model folder, or Hub id.", MODEL)]
    prompts: Annotated[
        str,
        Option(
            "what-happened:listed, what-happened:reconstructed-756, language; a .jsonl, .csv or .parquet file; or "
            "hub:ORG/NAME[@REVISION][/FILE][:COLUMN].",
            PROMPTS,
        ),
    ]
    output: Annotated[Path, Option("Trace folder; an unfinished one is continued.", short="-o")]
    revision: Annotated[str | None, Option("Revision of a Hub model.", MODEL)] = None
    prompts_revision: Annotated[str | None, Option("Revision of a Hub dataset.", PROMPTS)] = None
    column: Annotated[str | None, Option("Column of the prompts' text.", PROMPTS)] = None
    raw: Annotated[bool, Option("Give prompts as they are, without the chat template.", PROMPTS)] = False
    chat_template: Annotated[Path | None, Option("Jinja file instead of the model's chat template.", PROMPTS)] = None
    max_tokens: Annotated[int, Option("Most tokens of a response.", ANSWERS)] = 512
    samples: Annotated[int, Option("Responses per prompt.", ANSWERS)] = 1
    temperature: Annotated[float, Option("0 takes the most likely token.", ANSWERS)] = 0.0
    top_p: Annotated[float, Option("Nucleus of the distribution sampled from.", ANSWERS)] = 1.0
    seed: Annotated[int, Option("Seed of the samples; each response has its own from it.", ANSWERS)] = 0
    weights: Annotated[
        str | None,
        Option(
            "Keep the weights of the selected experts too, as float16 or float32.",
            metavar="TYPE",
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Option(
            "Record from this vLLM or SGLang server, started with --enable-return-routed-experts, in place of an engine"
            " here; of --model only config and tokenizer are needed.",
            SERVER,
            metavar="URL",
        ),
    ] = None
    served_model: Annotated[str | None, Option("The model's name there [default: the only one served].", SERVER)] = None
    api_key: Annotated[
        str | None, Option("Environment variable with the server's API key.", SERVER, metavar="VARIABLE")
    ] = None
    concurrency: Annotated[int, Option("Requests to the server at a time.", SERVER)] = 16
    attempts: Annotated[int, Option("Tries per request before giving up.", SERVER)] = 6
    tokens_per_second: Annotated[
        float | None,
        Option("The rate that --dry-run reckons with [default: that of what is recorded].", metavar="RATE"),
    ] = None
    dry_run: Annotated[bool, Option("Say what would be recorded and what it costs, start no engine.")] = False
    as_json: Annotated[bool, Option("Print the result as JSON.", name="json")] = False

    def options(self, words: list[str]) -> RecordOptions:
        """What to record; `words` are those for vLLM.

        Raises:
            InputError: vLLM does not know a word, or refuses its value.
        """
        from ftri.engine.arguments import parse_engine_arguments, unknown_option
        from ftri.engine.engine import Sampling
        from ftri.record import RecordOptions

        own = [f"--{parameter.name}" for parameter in parameters_of(CommandLine)]
        if words and self.base_url is not None:
            raise unknown_option(
                words[0], "mote-record", own, "nor wanted beside --base-url, where no engine is started"
            )
        return RecordOptions(
            model=self.model,
            prompts=self.prompts,
            output=self.output,
            revision=self.revision,
            prompts_revision=self.prompts_revision,
            column=self.column,
            raw=self.raw,
            chat_template=self.chat_template,
            samples=self.samples,
            sampling=Sampling(self.max_tokens, self.temperature, self.top_p, seed=self.seed),
            engine_arguments=parse_engine_arguments(words, "mote-record", own) if self.base_url is None else {},
            weights=self.weights_type(),
        )

    def weights_type(self) -> WeightsName | None:
        """What weights are kept in.

        Raises:
            InputError: it is no type of theirs, or a server is asked, which returns none.
        """
        if self.weights is None:
            return None
        if self.weights not in ("float16", "float32"):
            raise InputError(f"--weights is {self.weights!r}, expected float16 or float32")
        if self.base_url is not None:
            raise InputError("--weights is given with --base-url, but servers return no weights, expected one of them")
        return "float16" if self.weights == "float16" else "float32"

    def check(self) -> None:
        """See to it that the values can be meant.

        Raises:
            InputError: one cannot.
        """
        from ftri.costs import check_rate

        for name, least in (("concurrency", 1), ("attempts", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}, expected at least {least}")
        check_rate(self.tokens_per_second)

    def endpoint(self) -> Endpoint | None:
        """The server to record from, where one was named."""
        from ftri.endpoint import Endpoint

        if self.base_url is None:
            return None
        return Endpoint(
            self.base_url, self.served_model, self.api_key, concurrency=self.concurrency, attempts=self.attempts
        )


@command(app, CommandLine, epilog=EPILOG, pass_on=True)
def record(given: CommandLine, words: list[str]) -> None:
    """Record which experts every token selects, with unmodified vLLM."""
    from ftri.record import plan_recording

    given.check()
    plan = plan_recording(given.options(words), say, weights=given.base_url is None)
    if given.dry_run:
        costs = plan.costs(given.tokens_per_second)
        show_result(plan.summary() | ({"costs": costs.as_json()} if given.as_json else {}), given.as_json)
        if not given.as_json:
            show(costs.sentences())
        return
    show_result(record_with_bar(plan, given.endpoint()).as_json(), given.as_json)


def record_with_bar(plan: RecordPlan, endpoint: Endpoint | None = None) -> RecordSummary:
    """Record by an engine, or from a server, with a progress bar on stderr: responses, tokens per second, time left."""
    from ftri.record import record as run_recording
    from ftri.served import record_served

    with PartProgress("recording", plan.num_responses, "responses", announce_after=MEASURED_ON) as progress:
        if endpoint is None:
            return run_recording(plan, progress.begin, progress.advance)
        return record_served(plan, endpoint, progress.begin, progress.advance, say)


def show_result(result: dict[str, Any], as_json: bool) -> None:
    """Print a result on stdout: JSON, or a line per fact."""
    if as_json:
        print(json.dumps(result))
        return
    show(
        f"{name.replace('_', ' ')}: {value:,.1f}" if isinstance(value, float) else f"{name.replace('_', ' ')}: {value}"
        for name, value in result.items()
    )


def main() -> None:
    """Console entry."""
    run(app)


if __name__ == "__main__":
    main()
