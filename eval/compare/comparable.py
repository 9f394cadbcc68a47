"""Whether evaluations can stand beside each other: the same base, the same prompts, the same answers asked for and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.answers.arms import BASE
from eval.results import Results
from rewriter.errors import InputError, quoted

# Options that change what a rate or a divergence means; the others only say what else was measured.
ANSWER_OPTIONS = ("samples", "max_tokens", "temperature", "top_p", "label_cut")
DIVERGENCE_OPTIONS = ("kl_tokens", "kl_listed", "neutral_prompts")


@dataclass(frozen=True)
class Evaluation:
    """The results of one run, and what it is called here."""

    name: str
    results: Results


@dataclass(frozen=True)
class Rule:
    """Something that has to be alike; `read` takes it from results, None where they do not tell and nothing depends on it."""

    what: str
    why: str
    read: Callable[[Results], Any]


def base_name(results: Results) -> str:
    """What the base is called: the model, or its name at its server, whose key is that of an arm without a checkpoint."""
    subject = results.subject
    told = subject.get("model")
    if results.mode == "served":
        models = subject.get("models")
        told = (models.get(str(None)) if isinstance(models, Mapping) else None) or subject.get("base_url")
    return str(told or "a model without a name")


def _base(results: Results) -> dict[str, Any]:
    subject, told = results.subject, base_name(results)
    if results.mode == "live":
        # The name is for people: the same content elsewhere is the same base.
        told = subject.get("content_sha256") or subject.get("config_sha256") or told
    return {"answered by": results.mode, "model": told, "chat template": subject.get("template_sha256")}


def _prompts(results: Results) -> dict[str, Any]:
    told = results.prompts
    names = ("tested_sha256",) if told.get("tested_sha256") else ("spec", "revision", "file", "sha256")
    return {name: told.get(name) for name in ("num_prompts", *names)}


def _labels(results: Results) -> dict[str, Any]:
    return {"think format": results.subject.get("think_format"), "version of the rules": results.tool_version}


def _answers(results: Results) -> dict[str, Any]:
    asked = {name: results.options.get(name) for name in ANSWER_OPTIONS}
    # Only where answers are drawn does the seed change them.
    return asked | ({"seed": results.options.get("seed")} if asked["temperature"] else {})


def _divergence(results: Results) -> dict[str, Any] | None:
    if not results.fidelity:
        return None
    source = results.fidelity[0].neutral_source
    told = {name: results.options.get(name) for name in DIVERGENCE_OPTIONS}
    return told | {"neutral prompts": source.get("sha256") or source.get("spec")}


def _judge(results: Results) -> dict[str, Any] | None:
    found = results.mt_bench
    return {"judge": found.judge, "questions": found.question_source.get("sha256")} if found is not None else None


def _protection(name: str, results: Results) -> dict[str, Any] | None:
    for found in results.safety:
        if found.name == name:
            told = found.source.get("sha256") or found.source.get("spec")
            return {"set": told, "num_prompts": found.num_prompts}
    return None


RULES = (
    Rule("base", "changes are counted from it", _base),
    Rule("prompts", "rates are shares of them", _prompts),
    Rule("counted change", "the same answers would count differently", lambda results: results.target),
    Rule("labelling", "the same answers would get other labels", _labels),
    Rule("answers asked for", "a longer or a sampled answer can get another label", _answers),
    Rule("text that KL is measured on", "divergences would be of other tokens", _divergence),
    Rule("judge or questions", "ratings are a judge's own", _judge),
)


def check_whole(path: Path, results: Results) -> None:
    """See to it that results hold what their own parts name, as those of every run do.

    Raises: InputError with the file and the first thing that is not there.
    """
    arms = {arm.name for arm in results.arms}
    lacking = [f"target.{name}" for name in ("axis", "label", "direction", "change") if name not in results.target]
    lacking += [f"prompts.{name}" for name in ("num_prompts", "spec") if name not in results.prompts]
    lacking += [f"comparisons[0] with {results.primary}" for _ in range(not results.comparisons)]
    named = [BASE, results.primary, *(one.after for one in results.comparisons)]
    lacking += [f"the arm {name}" for name in named if name not in arms]
    if not lacking:
        axis, label = results.target["axis"], results.target["label"]
        base = results.arm(BASE)
        known = base.labels if axis == "behavior" else base.languages
        lacking += [f"a share of {label} on the axis {axis}" for _ in range(label not in known)]
    if lacking:
        raise InputError(f"{path}: has no {quoted(lacking[0])}, expected the results of a whole run of mote-eval")
    for comparison in results.comparisons:
        size, rates = len(comparison.matrix.labels), comparison.matrix.rates
        if [len(row) for row in rates] != [size] * size:
            raise InputError(
                f"{path}: the transitions to {quoted(comparison.after)} are no table of {size} by {size} labels"
            )


def check_comparable(evaluations: Sequence[Evaluation]) -> None:
    """See to it that every evaluation can be compared with the first, and that each has a name of its own.

    Raises: InputError with what differs, where, and both values.
    """
    names = [one.name for one in evaluations]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"two results are called {doubled[0]!r}; give one another name: NAME=RESULTS")
    sets = sorted({found.name for one in evaluations for found in one.results.safety})
    protection = [
        Rule(f"set of prompts for {name}", "refusals would be of other prompts", partial(_protection, name))
        for name in sets
    ]
    for rule in (*RULES, *protection):
        told = [(one.name, value) for one in evaluations if (value := rule.read(one.results)) is not None]
        for name, value in told[1:]:
            if value != told[0][1]:
                here, there = _difference(value, told[0][1])
                raise InputError(
                    f"{name} cannot be compared with {told[0][0]}: another {rule.what} ({here}, expected {there});"
                    f" {rule.why}"
                )


def _difference(here: Any, there: Any) -> tuple[str, str]:
    """The parts in which two values differ, in words."""
    if not (isinstance(here, Mapping) and isinstance(there, Mapping)):
        return _words(here), _words(there)
    keys = [key for key in {**there, **here} if here.get(key) != there.get(key)]
    return (
        ", ".join(f"{key} {_words(here.get(key))}" for key in keys),
        ", ".join(f"{key} {_words(there.get(key))}" for key in keys),
    )


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # A checksum is told apart by its beginning.
    return f"{text[:60]}..." if len(text) > 64 else text
