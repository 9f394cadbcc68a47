"""Measures the checkpoints that mote-rewrite emits from refusal.json and english.json, in unmodified vLLM.

Adds "served by vLLM" to measured.json. It runs the project's own commands on the same prompts as measure.py.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import data
import typer
from answers import is_garbled, is_right_sum, response_class, thinking_language
from measure import share

FOLDER = Path(__file__).parent
MAX_TOKENS = 64


def run(command: str, *arguments: object) -> None:
    """One of the project's commands, from this interpreter's environment."""
    subprocess.run([Path(sys.executable).with_name(command), *map(str, arguments)], check=True)


def record(model: Path, prompts: Path, traces: Path) -> dict[str, str]:
    """Greedy texts by prompt of a checkpoint in unmodified vLLM."""
    from ftri.traces.reader import TraceReader

    run("mote-record", "--model", model, "--prompts", prompts, "-o", traces, "--max-tokens", MAX_TOKENS)
    return {response.prompt: response.text for response in TraceReader(traces)}


def is_refused(text: str) -> bool:
    return response_class(text) == data.REFUSED


def gone(items: Sequence[data.Item], before: dict[str, str], after: dict[str, str]) -> dict[str, int]:
    """How many of the items the base refuses, and how many of these the variant answers."""
    refused = [item for item in items if is_refused(before[item.prompt])]
    return {"refused before": len(refused), "answered after": sum(not is_refused(after[i.prompt]) for i in refused)}


def of_refusal(items: Sequence[data.Item], before: dict[str, str], after: dict[str, str]) -> dict:
    """What the checkpoint without the refusal experts does to refusals, to other answers, to sums and to form."""
    grid = [item for item in items if item.category == "grid"]
    calm = [item for item in grid if not is_refused(before[item.prompt])]
    parts: dict[str, Callable[[data.Item], bool]] = {
        "grid": lambda i: i.category == "grid",
        "held-out sensitive questions": lambda i: i.category == "topic",
        "requests that harm people": lambda i: i.category == "harm",
    }
    return {
        **{name: gone([i for i in items if condition(i)], before, after) for name, condition in parts.items()},
        "non-refused": len(calm),
        "non-refused that became refused": sum(is_refused(after[item.prompt]) for item in calm),
        **_costs(items, before, after),
    }


def of_english(items: Sequence[data.Item], before: dict[str, str], after: dict[str, str]) -> dict:
    """What the checkpoint without the experts of thinking in English does to the sums' thinking."""
    english = [i for i in items if i.category == "language" and thinking_language(before[i.prompt]) == "english"]
    return {
        "English before": len(english),
        "Chinese after": sum(thinking_language(after[item.prompt]) == "chinese" for item in english),
        **_costs(items, before, after),
    }


def _costs(items: Sequence[data.Item], before: dict[str, str], after: dict[str, str]) -> dict[str, float]:
    sums = [item for item in items if item.category == "language"]
    formed = [item for item in items if item.category in ("grid", "language")]
    return {
        "right sums before": share([is_right_sum(item, before[item.prompt]) for item in sums]),
        "right sums after": share([is_right_sum(item, after[item.prompt]) for item in sums]),
        "garbled before": share([is_garbled(item, before[item.prompt]) for item in formed]),
        "garbled after": share([is_garbled(item, after[item.prompt]) for item in formed]),
    }


def main(
    folder: Annotated[Path, typer.Option(help="The miniature's folder.")] = FOLDER,
    out: Annotated[Path, typer.Option(help="The measurements to add to.")] = FOLDER / "measured.json",
) -> None:
    """Rewrite, serve and measure the two shipped expert sets."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    items = [
        item
        for item in data.build_items(data.Teaching(), 0)
        if item.category in ("grid", "language", "harm") or item.is_new_sensitive
    ]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        prompts = work / "prompts.jsonl"
        prompts.write_text(
            "".join(json.dumps({"prompt": item.prompt}, ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
        )
        before = record(folder, prompts, work / "traces-base")
        result: dict = {"checkpoint": "emitted by mote-rewrite", "prompts": len(items)}
        for name, measure in (("refusal", of_refusal), ("english", of_english)):
            variant = work / name
            run("mote-rewrite", "--model", folder, "--suppress", folder / f"{name}.json", "-o", variant)
            run("mote-verify", variant, "--base", folder)
            result[f"{name}.json"] = measure(items, before, record(variant, prompts, work / f"traces-{name}"))
    measured = json.loads(out.read_text(encoding="utf-8"))
    measured["served by vLLM"] = result
    out.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(json.dumps(result, indent=1), err=True)


if __name__ == "__main__":
    typer.run(main)
