"""What a run will cost before it is started: requests, tokens, seconds and node-hours, and which options would halve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewriter.console import duration_text
from rewriter.errors import InputError

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Costs:
    """Work and time of a run; times are None where no rate is known.

    Tokens are those run through the model, prompts included. `most_tokens` is reached where every response runs into its
    limit; `expected_tokens` goes by responses that are there already, and is None without any.
    """

    requests: int
    prompt_tokens: int
    most_tokens: int
    expected_tokens: int | None
    engine_loads: int
    tokens_per_second: float | None
    rate_source: str
    seconds: float | None
    node_hours: float | None
    halved_by: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The costs for scripts."""
        return asdict(self) | {"halved_by": list(self.halved_by)}

    def sentences(self) -> list[str]:
        """The costs for people, a line each."""
        if not self.requests:
            return ["nothing is left to do"]
        expected = "" if self.expected_tokens is None else f", {self.expected_tokens:,} expected"
        lines = [
            f"{self.requests:,} requests, at most {self.most_tokens:,} tokens{expected}"
            f" ({self.prompt_tokens:,} of them of prompts), {self.engine_loads} engine load{'s' * (self.engine_loads != 1)}"
        ]
        if self.seconds is None or self.tokens_per_second is None:
            lines.append(
                "how long that takes is not known: give --tokens-per-second, or begin, and the first answers tell it"
            )
        else:
            lines.append(
                f"about {duration_text(self.seconds)} on one node, {self.node_hours:.2f} node-hours, at"
                f" {self.tokens_per_second:,.0f} tokens/s ({self.rate_source})"
            )
        lines += [f"half of it: {option}" for option in self.halved_by]
        return lines


def check_rate(tokens_per_second: float | None) -> None:
    """Refuse a --tokens-per-second that is no rate. Raises: InputError."""
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise InputError(f"--tokens-per-second is {tokens_per_second:g}, expected more than 0")


def estimate(
    *,
    num_requests: int,
    num_prompt_tokens: int,
    max_tokens: int,
    mean_completion_tokens: float | None = None,
    num_other_requests: int = 0,
    num_other_tokens: int = 0,
    engine_loads: int = 1,
    given_rate: float | None = None,
    measured_rate: float | None = None,
    measured_on: str = "what is recorded",
    halved_by: Sequence[str] = (),
) -> Costs:
    """The costs of `num_requests` whose prompts have `num_prompt_tokens` in all and whose answers at most `max_tokens` each.

    `num_other_tokens` are run besides, some of them for `num_other_requests`. The last token of a response is sampled and never
    run. A given rate stands over a measured one; `measured_on` says what that was measured on.
    """
    most = num_prompt_tokens + num_other_tokens + num_requests * (max_tokens - 1)
    expected = None
    if mean_completion_tokens is not None:
        expected = (
            num_prompt_tokens
            + num_other_tokens
            + round(num_requests * max(min(mean_completion_tokens, max_tokens) - 1, 0))
        )
    rate = given_rate if given_rate is not None else measured_rate
    seconds = (expected if expected is not None else most) / rate if rate else None
    return Costs(
        requests=num_requests + num_other_requests,
        prompt_tokens=num_prompt_tokens,
        most_tokens=most,
        expected_tokens=expected,
        engine_loads=engine_loads,
        tokens_per_second=rate,
        rate_source="given" if given_rate is not None else f"measured on {measured_on}" if rate else "",
        seconds=seconds,
        node_hours=seconds / SECONDS_PER_HOUR if seconds is not None else None,
        halved_by=tuple(halved_by),
    )
