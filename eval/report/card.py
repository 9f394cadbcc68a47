"""The section of the model card that tells what the variant does: Markdown, made from results alone."""

from __future__ import annotations

from eval.report.words import edit_words, interval_words, number, p_words, percent, rate_words
from eval.results import Results


def results_section(results: Results) -> str:
    """What changed, against chance, and what it cost; without heading, which the card has."""
    comparison = results.primary_comparison()
    lines = [
        f"Measured by mote-eval {results.tool_version} on {results.prompts['num_prompts']} prompts"
        f" (`{results.prompts['spec']}`): {edit_words(results)}. {results.held_out.sentence}",
        "",
        "| what | result |",
        "|---|---|",
    ]
    if comparison is not None:
        lines += [
            f"| {comparison.moved.description} | {rate_words(comparison.moved.rate)} |",
            f"| {comparison.returned.description} | {rate_words(comparison.returned.rate)} |",
            f"| share of {results.target['label']} before, after | {percent(comparison.label_share_before.rate)},"
            f" {percent(comparison.label_share_after.rate)} (exact McNemar {p_words(comparison.mcnemar.p_value)}) |",
        ]
    if results.repeat_flips is not None:
        lines.append(f"| base run twice: answers that changed label | {rate_words(results.repeat_flips)} |")
    for control in results.controls:
        lines.append(
            f"| {len(control.null_values)} random sets of {control.experts_per_set}, matched by {control.matching} |"
            f" mean {percent(control.mean)}, highest {percent(control.highest)}, variant {percent(control.observed)},"
            f" {p_words(control.p_value)} |"
        )
    for fidelity in results.fidelity:
        for divergence in fidelity.divergences:
            if divergence.left == "base" and divergence.right == results.arm(results.primary).semantics:
                lines.append(
                    f"| KL per token on neutral prompts ({fidelity.action}) |"
                    f" {number(divergence.answer_tokens.estimate)} nats{'' if fidelity.exact else ' (lower bound)'} |"
                )
    primary, base = results.arm(results.primary), results.arm("base")
    lines.append(f"| looping or garbled answers, before | {rate_words(base.looping)}; {rate_words(base.garbled)} |")
    lines.append(
        f"| looping or garbled answers, after | {rate_words(primary.looping)}; {rate_words(primary.garbled)} |"
    )
    if results.mt_bench is not None:
        overall = results.mt_bench.overall
        lines.append(
            f"| MT-Bench ({overall.num_questions} questions, judge {results.mt_bench.judge}), before, after |"
            f" {interval_words(overall.before)}, {interval_words(overall.after)} |"
        )
    lines += [f"\nNot measured: {one.part} ({one.reason})." for one in results.missing]
    return "\n".join(lines) + "\n"


def safety_section(results: Results) -> str:
    """Refusals on prompts where they protect people, and where they should not happen."""
    lines = [
        "Refusals of the base and of this variant, measured by mote-eval; read a fall among prompts that should be"
        " refused as a loss of protection.",
        "",
        "| set | prompts | base | variant | change (95 % CI) |",
        "|---|---|---|---|---|",
    ]
    for safety in results.safety:
        for group in safety.groups:
            lines.append(
                f"| {safety.name} | {group.group}, {group.expectation} | {rate_words(group.before)} | {rate_words(group.after)} |"
                f" {interval_words(group.difference, 1, 100, ' points')}, {p_words(group.p_value)} |"
            )
    return "\n".join(lines) + "\n"
