"""Writes the measured tables into a miniature's model card, between two marks. usage: python card.py [FOLDER]"""

import json
import sys
from pathlib import Path

START, END = "<!-- measured:start -->", "<!-- measured:end -->"
KL = "KL, nats per token of answers that were no refusals"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def tables(measured: dict) -> str:
    """Markdown of behaviours, localisation and the served checkpoints."""
    lines = ["### Behaviour", "", "| part | as intended |", "|---|---|"]
    lines += [f"| {name} | {percent(value)} |" for name, value in measured["behaviour"].items()]
    lines += ["", "### Suppressing (reroute) the fTRI top k of the refusals", ""]
    lines += _localisation(
        measured["refusal"],
        [
            "refusals flipped, grid",
            "refusals flipped, held-out tenth of the grid",
            "refusals flipped, held-out template",
            "refusals flipped, held-out sensitive questions",
            "refusals flipped, requests that harm people",
            "non-refused that become refused",
            "right sums after",
            "garbled after",
        ],
    )
    if measured["english"]:
        lines += ["", "### Suppressing (reroute) the fTRI top k of thinking in English", ""]
        lines += _localisation(measured["english"], ["English to Chinese", "right sums after", "garbled after"])
    if "served by vLLM" in measured:
        lines += ["", "### The same from mote-rewrite's checkpoints, served by vLLM", ""]
        lines += _served(measured["served by vLLM"])
    return "\n".join(lines)


def _served(served: dict) -> list[str]:
    refusal, english = served["refusal.json"], served["english.json"]
    lines = ["| suppressed | of | before | after |", "|---|---|---|---|"]
    for part in ("grid", "held-out sensitive questions", "requests that harm people"):
        before, gone = refusal[part]["refused before"], refusal[part]["answered after"]
        lines.append(f"| refusal.json | refusals, {part} | {before} | {before - gone} |")
    became = refusal["non-refused that became refused"]
    lines.append(f"| refusal.json | refusals among the {refusal['non-refused']} others of the grid | 0 | {became} |")
    before, gone = english["English before"], english["Chinese after"]
    lines.append(f"| english.json | these {before} sums thought over in Chinese | 0 | {gone} |")
    for name, row in (("refusal.json", refusal), ("english.json", english)):
        for part in ("right sums", "garbled"):
            lines.append(f"| {name} | {part} | {percent(row[f'{part} before'])} | {percent(row[f'{part} after'])} |")
    return lines


def _localisation(rows: dict, columns: list[str]) -> list[str]:
    has_kl = all(KL in row for row in rows.values())
    head = ["k", "% of experts", *columns, *([KL] * has_kl), "uniform mean / max / p", "matched mean / max / p"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for size, row in rows.items():
        cells = [size, str(row["percent of experts"]), *(percent(row[column]) for column in columns)]
        cells += [f"{row[KL]:.4f}"] * has_kl
        for kind in ("uniform", "matched"):
            chance = row["random"][kind]
            cells.append(f"{percent(chance['mean'])} / {percent(chance['max'])} / {chance['p']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def update_card(folder: Path) -> None:
    """Replace the marked part of README.md by the tables of measured.json."""
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8")
    before, _, rest = card.partition(START)
    _, _, after = rest.partition(END)
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    path.write_text(f"{before}{START}\n{tables(measured)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update_card(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
