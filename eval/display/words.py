"""Numbers as the tables, the card and the report print them."""

from __future__ import annotations

from eval.outcomes.statistics import Interval, Rate

NONE = "-"


def percent(share: float | None, digits: int = 1) -> str:
    """0.125 -> `12.5 %`."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def rate_words(rate: Rate) -> str:
    """`12 of 40 (30.0 %, 95 % CI 18.1-45.4)`."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return "none at risk"
    return f"{rate.count} of {rate.total} ({percent(rate.rate)}, 95 % CI {100 * rate.low:.1f}-{100 * rate.high:.1f})"


def short_rate(rate: Rate) -> str:
    """`12/40 30.0 %`."""
    return NONE if rate.rate is None else f"{rate.count}/{rate.total} {percent(rate.rate)}"


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits, never in exponents for what a table holds."""
    if value is None:
        return NONE
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def interval_words(interval: Interval, digits: int = 2, scale: float = 1.0, unit: str = "") -> str:
    """`1.23 (0.98 to 1.50)`."""
    if interval.estimate is None:
        return NONE
    text = f"{scale * interval.estimate:.{digits}f}{unit}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f})"


def p_words(value: float) -> str:
    """`p = 0.031` or `p < 0.0001`."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"
