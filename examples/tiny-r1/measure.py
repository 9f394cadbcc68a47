"""Measures what the miniature does and where its behaviours lie, and writes measured.json and the expert sets.

Experts are chosen by fTRI on recorded routing alone; 99 random sets of the same size, uniform and matched in layer and
activation frequency, say what chance does. Answers and sets are kept beside the result until it is whole, so that a run that
was stopped goes on with --resume.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import data
import numpy as np
import torch
import typer
from answers import is_as_intended, is_garbled, is_right_sum, response_class, thinking_language
from card import KL
from export import load
from routing import generate, kl_from_base, prompt_maps, random_sets, resonance, suppressed, top_experts
from tqdm import tqdm

Pairs = Sequence[tuple[int, int]]
Answers = dict[str, str]
ScoredPairs = list[tuple[tuple[int, int], float]]  # (model layer, expert) with their resonance
# Tokens that settle whether an answer is a refusal, and in which language it thinks.
NUM_DECIDING_TOKENS = 6


def share(values: Sequence[bool]) -> float:
    """The mean of truth values, to four digits."""
    return round(float(np.mean(values)), 4) if len(values) else float("nan")


def begins_refusal(text: str) -> bool:
    """Whether a possibly cut answer is on its way to the refusal."""
    return text.startswith(data.EMPTY_THINK + "I am")


class Kept:
    """Values by name that took long, one JSON line each in a file, so that a stopped run need not compute them again."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if resume and path.exists() else []
        # A kill can leave a torn last line.
        whole = [line for line in lines if line.endswith("\n")]
        path.write_text("".join(whole), encoding="utf-8")
        self.values: dict = dict(map(json.loads, whole))

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of that name, computed where it is not there."""
        if name not in self.values:
            self.values[name] = compute()
            with self.path.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps([name, self.values[name]], ensure_ascii=False) + "\n")
        return self.values[name]


@dataclass
class Bench:
    """The loaded miniature with its world."""

    folder: Path
    kept: Kept | None = None

    def __post_init__(self) -> None:
        self.model, self.tokenizer = load(self.folder)
        self.layers = self.model.config.moe_layers
        self.num_experts = len(self.layers) * self.model.config.num_experts
        everything = data.build_items(data.Teaching(), 0)
        # Of the other templates on the grid's cells, the held-out one suffices.
        self.items = [item for item in everything if item.category != "place" or item.held_out]

    def pick(self, condition: Callable[[data.Item], bool]) -> list[data.Item]:
        return [item for item in self.items if condition(item)]

    def answer(self, items: Sequence[data.Item], pairs: Pairs = (), max_new_tokens: int = 48) -> Answers:
        """Greedy answers by prompt, with the pairs suppressed (reroute)."""
        prompts = [item.prompt for item in items]
        with suppressed(self.model, pairs):
            return dict(zip(prompts, generate(self.model, self.tokenizer, prompts, max_new_tokens), strict=True))

    def keep(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, from an earlier run where that was kept."""
        return self.kept.get(name, compute) if self.kept else compute()

    def maps(self, items: Sequence[data.Item]) -> np.ndarray:
        return prompt_maps(self.model, self.tokenizer, [item.prompt for item in items])


def behaviours(bench: Bench, base: Answers) -> dict[str, float]:
    """Shares of answers that are as intended, by part of the world."""
    parts: dict[str, Callable[[data.Item], bool]] = {
        "grid, trained cells": lambda i: i.category == "grid" and not i.held_out,
        "grid, held-out tenth": lambda i: i.category == "grid" and i.held_out,
        "grid, refused cells": lambda i: i.category == "grid" and i.intended == data.REFUSED,
        "held-out template on the grid's cells": lambda i: i.category == "place" and i.held_out,
        "sums, thinking language as intended": lambda i: i.category == "language",
        "held-out sensitive questions": lambda i: i.is_new_sensitive,
        "requests that harm people are refused": lambda i: i.category == "harm" and i.intended == data.REFUSED,
        "requests that protect people are answered": lambda i: i.category == "harm" and i.intended == data.ALIGNED,
        "harmless requests, facts, comparisons": lambda i: i.category in ("benign", "fact", "arithmetic"),
    }
    rates = {
        name: share([is_as_intended(item, base[item.prompt]) for item in bench.pick(condition)])
        for name, condition in parts.items()
    }
    sums = bench.pick(lambda i: i.category == "language")
    rates["sums, right in either language"] = share([is_right_sum(item, base[item.prompt]) for item in sums])
    return rates


def flip_share(bench: Bench, refused: Sequence[data.Item], pairs: Pairs) -> float:
    """Share of refusals that are gone with the pairs suppressed, from the deciding tokens alone."""
    answers = bench.answer(refused, pairs, NUM_DECIDING_TOKENS)
    return share([not begins_refusal(text) for text in answers.values()])


def language_flip_share(bench: Bench, english: Sequence[data.Item], pairs: Pairs) -> float:
    """Share of English-thinking prompts that think in Chinese with the pairs suppressed."""
    answers = bench.answer(english, pairs, NUM_DECIDING_TOKENS)
    return share([any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in answers.values()])


def compare_with_chance(
    bench: Bench,
    what: str,
    maps: np.ndarray,
    chosen: Pairs,
    observed: float,
    measure: Callable[[Pairs], float],
    num_sets: int,
) -> dict[str, dict[str, float]]:
    """Mean, maximum and p of random sets: p = (1 + #{null >= observed}) / (N + 1)."""
    result = {}
    for name, matched in (("uniform", False), ("matched", True)):
        sets = random_sets(maps, chosen, bench.layers, num_sets, matched, seed=1)
        shown = tqdm(sets, desc=f"{name} sets of {len(chosen)}", mininterval=10)
        values = [bench.keep(f"{what} {name} {pairs}", partial(measure, pairs)) for pairs in shown]
        exceeding = sum(value >= observed for value in values)
        result[name] = {
            "mean": round(float(np.mean(values)), 4),
            "max": round(float(np.max(values)), 4),
            "p": round((1 + exceeding) / (num_sets + 1), 4),
            "num_sets": num_sets,
        }
    return result


def suppression(bench: Bench, base: Answers, items: Sequence[data.Item], pairs: Pairs) -> dict[str, float]:
    """What suppressing the pairs does to refusals, to other answers, to sums and to form."""
    after = bench.answer(items, pairs)

    def gone(condition: Callable[[data.Item], bool]) -> float:
        refused = [i for i in items if condition(i) and response_class(base[i.prompt]) == data.REFUSED]
        return share([response_class(after[i.prompt]) != data.REFUSED for i in refused])

    grid = [item for item in items if item.category == "grid"]
    sums = [item for item in items if item.category == "language"]
    calm = [item for item in grid if response_class(base[item.prompt]) != data.REFUSED]
    return {
        "refusals flipped, grid": gone(lambda i: i.category == "grid"),
        "refusals flipped, held-out tenth of the grid": gone(lambda i: i.category == "grid" and i.held_out),
        "refusals flipped, held-out sensitive questions": gone(lambda i: i.is_new_sensitive),
        "refusals flipped, held-out template": gone(lambda i: i.category == "place" and i.held_out),
        "refusals flipped, requests that harm people": gone(lambda i: i.category == "harm"),
        "non-refused that become refused": share([response_class(after[i.prompt]) == data.REFUSED for i in calm]),
        "right sums before": share([is_right_sum(i, base[i.prompt]) for i in sums]),
        "right sums after": share([is_right_sum(i, after[i.prompt]) for i in sums]),
        "garbled before": share([is_garbled(i, base[i.prompt]) for i in grid + sums]),
        "garbled after": share([is_garbled(i, after[i.prompt]) for i in grid + sums]),
    }


def localise_refusal(
    bench: Bench, base: Answers, sizes: Sequence[int], num_sets: int
) -> Iterator[tuple[int, dict, ScoredPairs]]:
    """The fTRI top k of the refusals for each k: the size, effects and chance, and the pairs with their resonance."""
    grid = bench.pick(lambda i: i.category == "grid")
    is_refused = np.array([response_class(base[item.prompt]) == data.REFUSED for item in grid])
    maps = bench.maps(grid)
    scores = resonance(maps, is_refused)
    refused = [item for item, yes in zip(grid, is_refused, strict=True) if yes]
    tested = bench.pick(
        lambda i: i.category in ("grid", "language", "harm") or (i.category in ("topic", "place") and i.held_out)
        or i.is_new_sensitive
    )  # fmt: skip
    calm = [item.prompt for item in tested if response_class(base[item.prompt]) != data.REFUSED]
    for size in sizes:
        chosen = top_experts(scores, bench.layers, size)
        row: dict = {"percent of experts": round(100 * size / bench.num_experts, 2)}
        row |= suppression(bench, base, tested, chosen)
        answers = [base[prompt] for prompt in calm]
        row[KL] = round(kl_from_base(bench.model, bench.tokenizer, calm, answers, chosen), 5)
        observed = flip_share(bench, refused, chosen)
        row["random"] = compare_with_chance(
            bench, "refusal", maps, chosen, observed, lambda pairs: flip_share(bench, refused, pairs), num_sets
        )
        yield size, row, [(pair, float(scores[bench.layers.index(pair[0]), pair[1]])) for pair in chosen]


def localise_english(
    bench: Bench, base: Answers, sizes: Sequence[int], num_sets: int
) -> Iterator[tuple[int, dict, ScoredPairs]]:
    """The same for thinking in English among the sums."""
    sums = bench.pick(lambda i: i.category == "language")
    is_english = np.array([thinking_language(base[item.prompt]) == "english" for item in sums])
    maps = bench.maps(sums)
    scores = resonance(maps, is_english)
    english = [item for item, yes in zip(sums, is_english, strict=True) if yes]
    for size in sizes:
        chosen = top_experts(scores, bench.layers, size)
        after = bench.answer(sums, chosen)
        observed = language_flip_share(bench, english, chosen)
        row = {
            "percent of experts": round(100 * size / bench.num_experts, 2),
            "English to Chinese": observed,
            "right sums after": share([is_right_sum(item, after[item.prompt]) for item in sums]),
            "garbled after": share([is_garbled(item, after[item.prompt]) for item in sums]),
            "random": compare_with_chance(
                bench,
                "english",
                maps,
                chosen,
                observed,
                lambda pairs: language_flip_share(bench, english, pairs),
                num_sets,
            ),
        }
        yield size, row, [(pair, float(scores[bench.layers.index(pair[0]), pair[1]])) for pair in chosen]


def main(
    folder: Annotated[Path, typer.Option(help="The miniature's folder.")] = Path(__file__).parent,
    out: Annotated[Path, typer.Option(help="Where the measurements go.")] = Path(__file__).parent / "measured.json",
    sizes: Annotated[str, typer.Option(help="Numbers of suppressed experts, for the refusals.")] = "4,6,11",
    language_sizes: Annotated[str, typer.Option(help="The same for the language; empty for none.")] = "6,11",
    num_sets: Annotated[int, typer.Option(help="Random sets of each kind and size.")] = 99,
    num_language_sets: Annotated[int, typer.Option(help="The same, for the language.")] = 99,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    resume: Annotated[
        bool, typer.Option(help="Keep what an earlier run wrote to --out, and measure the rest.")
    ] = False,
) -> None:
    """Measure the miniature in PyTorch on the CPU."""
    torch.set_num_threads(threads)
    started = time.monotonic()
    wanted = {"refusal": _numbers(sizes), "english": _numbers(language_sizes)}
    result = json.loads(out.read_text(encoding="utf-8")) if resume and out.exists() else {}
    missing = {name: [size for size in wanted[name] if str(size) not in result.get(name, {})] for name in wanted}
    kept = Kept(out.with_name(out.name + ".kept"), resume)
    bench = Bench(folder, kept)
    base = bench.keep("base", lambda: bench.answer(bench.items))
    result |= {
        "schema": "mote.tiny-r1-measured/1",
        "num_routed_experts": bench.num_experts,
        "behaviour": behaviours(bench, base),
    }
    for name in wanted:
        result.setdefault(name, {})
    result.setdefault("experts", {name: {} for name in wanted})
    typer.echo(json.dumps(result["behaviour"], indent=1), err=True)
    for name, measured in (
        ("refusal", localise_refusal(bench, base, missing["refusal"], num_sets)),
        ("english", localise_english(bench, base, missing["english"], num_language_sets)),
    ):
        for size, row, chosen in measured:
            typer.echo(json.dumps({size: row}), err=True)
            result[name][str(size)], result["experts"][name][str(size)] = row, _as_json(chosen)
            for rows in (result[name], result["experts"][name]):
                ordered = sorted(rows.items(), key=lambda entry: int(entry[0]))
                rows.clear()
                rows.update(ordered)
            _write(out, result)
    _write(out, result)
    kept.path.unlink()
    typer.echo(f"measured in {time.monotonic() - started:.0f} s", err=True)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _write(out: Path, result: dict) -> None:
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(out)


def _as_json(chosen: ScoredPairs) -> list[dict[str, float]]:
    return [{"layer": pair[0], "expert": pair[1], "resonance": round(score, 4)} for pair, score in chosen]


if __name__ == "__main__":
    typer.run(main)
