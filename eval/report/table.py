"""The result on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.words import edit_words, interval_words, number, p_words, percent, short_rate
from eval.results import ArmSummary, Results
from rewriter.semantics import DROP_RENORM, REROUTE


def one_screen(results: Results) -> str:
    """The table on stdout: transitions, chance, divergence, safety, quality and what is missing."""
    lines = [
        f"{results.behavior}: {edit_words(results)}; {results.prompts['num_prompts']} prompts ({results.held_out.status})",
        "",
    ]
    rows: list[Sequence[str]] = [("", results.target["change"], "opposite", "label share", "loop/garble", "McNemar")]
    base = results.arm("base")
    rows.append(
        (
            "base",
            "",
            "",
            percent(base.labels_of(results.target["label"], results.target["axis"]).rate),
            _damage(base),
            "",
        )
    )
    for comparison in results.comparisons:
        arm = results.arm(comparison.after)
        rows.append(
            (
                f"{arm.name}" + (f" ({arm.semantics})" if arm.semantics else ""),
                short_rate(comparison.moved.rate),
                short_rate(comparison.returned.rate),
                percent(comparison.label_share_after.rate),
                _damage(arm),
                p_words(comparison.mcnemar.p_value),
            )
        )
    if results.repeat_flips is not None and results.repeat_flips_at_risk is not None:
        rows.append(
            ("base again", short_rate(results.repeat_flips_at_risk), f"any flip {short_rate(results.repeat_flips)}")
        )
    for control in results.controls:
        rows.append(
            (
                f"{len(control.null_values)} random, {control.matching}",
                f"mean {percent(control.mean)} max {percent(control.highest)}",
                f"mean {percent(sum(control.opposite_null_values) / len(control.opposite_null_values))}",
                "",
                f"mean {percent(sum(control.damaged_null_values) / len(control.damaged_null_values))}",
                p_words(control.p_value),
            )
        )
    lines += align(rows)
    for fidelity in results.fidelity:
        from_base = {one.right: one for one in fidelity.divergences if one.left == "base"}
        words = ", ".join(f"{name} {number(one.answer_tokens.estimate)}" for name, one in from_base.items())
        lines += [
            "",
            f"KL per token from the base, {fidelity.action}{'' if fidelity.exact else ' (lower bounds)'}: {words}",
        ]
        to_paper = [one for one in fidelity.divergences if one.left == DROP_RENORM and one.right == REROUTE]
        if to_paper:
            lines.append(f"the checkpoint's reroute from the paper's own: {number(to_paper[0].answer_tokens.estimate)}")
        if fidelity.touched is not None:
            lines.append(
                f"router slots held: {percent(fidelity.touched.slot_share, 2)};"
                f" tokens touched: {percent(fidelity.touched.token_share)}"
            )
    if results.sweep:
        lines += ["", "k: " + ", ".join(f"{p.num_experts} -> {percent(p.moved.rate.rate)}" for p in results.sweep)]
    for safety in results.safety:
        for group in safety.groups:
            lines.append(
                f"{safety.name}, {group.group} ({group.expectation}): refused {percent(group.before.rate)}"
                f" -> {percent(group.after.rate)}"
                f" ({p_words(group.p_value)})"
            )
    if results.mt_bench is not None:
        overall = results.mt_bench.overall
        lines.append(
            f"MT-Bench by {results.mt_bench.judge}: {interval_words(overall.before)} -> {interval_words(overall.after)}"
        )
    lines += [f"warning: {warning}" for warning in results.warnings]
    lines += [f"not measured: {one.part}: {one.reason}" for one in results.missing]
    return "\n".join(lines) + "\n"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns below each other; short rows are filled up."""
    width = max(map(len, rows))
    filled = [[*row, *[""] * (width - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in filled) for column in range(width)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in filled]


def _damage(arm: ArmSummary) -> str:
    return f"{percent(arm.looping.rate)} / {percent(arm.garbled.rate)}"
