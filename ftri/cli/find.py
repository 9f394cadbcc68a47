"""The command line `mote-ftri`: find the experts behind a behaviour in recorded routing; `mote-ftri merge` adds trace folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewriter.command import DefaultCommandGroup, PanelCommand
from rewriter.console import make_app, progress_bar, run, say
from rewriter.json_text import printed_json
from rewriter.whole_file import make_folder

if TYPE_CHECKING:
    from ftri.analysis.findings import Findings
    from ftri.analysis.significance import Progress
    from ftri.traces.class_totals import ClassTotals
    from rewriter.expert_set import ExpertSet

CLASSES, RANKING, RESULT = "Classes", "Ranking", "Result"

app = make_app(cls=DefaultCommandGroup)


@app.command("find", cls=PanelCommand)
def find_command(
    *,
    traces: Annotated[
        list[Path] | None,
        typer.Argument(
            rich_help_panel="Traces",
            help="Trace folders that mote-record wrote, or a file of class totals that mote-ftri import wrote.",
            show_default=False,
        ),
    ] = None,
    behavior: Annotated[
        str,
        typer.Option(
            rich_help_panel=CLASSES,
            help="The class: refused, aligned, reasoned; thinking:english, thinking:chinese; A-vs-B; or a class of --labels.",
            show_default=False,
        ),
    ],
    k: Annotated[
        int, typer.Option("-k", "--top", rich_help_panel=RANKING, help="How many experts to name.", min=1)
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            rich_help_panel=RESULT,
            help="Write the expert set here instead of to stdout.",
            show_default=False,
        ),
    ] = None,
    statistic: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RANKING,
            help="Ranking: paper, class-mean, rate, risk-difference, npmi, log-odds or welch [default: paper; with --imatrix"
            " risk-difference].",
        ),
    ] = None,
    positions: Annotated[
        str,
        typer.Option(
            rich_help_panel=RANKING, help="Tokens that count: prompt, completion, all, shared, varying or last."
        ),
    ] = "prompt",
    labels: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CLASSES,
            help="Labels by any rule of yours: JSONL, CSV or Parquet with prompt_id, label (or behavior) and, if wanted, sample.",
            show_default=False,
        ),
    ] = None,
    label_cut: Annotated[
        bool,
        typer.Option(
            "--label-cut",
            rich_help_panel=CLASSES,
            help="Label responses that ran into the token limit by what is there.",
        ),
    ] = False,
    think_format: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CLASSES,
            help="How the model marks its thinking (harmony, gemma4, mistral, think, ...); told by its family or the text.",
            show_default=False,
        ),
    ] = None,
    compare_with: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            rich_help_panel=RESULT,
            help="An expert set of the same model to compare the result with.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULT, help="Write report.html and its pictures into this folder.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESULT,
            help="Folder or Hub model whose tokenizer.json shows the report's tokens as text; the traces' model if it is here.",
            show_default=False,
        ),
    ] = None,
    imatrix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=FILE",
            rich_help_panel=RANKING,
            help="Instead of traces: a class's counts by llama-imatrix, once for each class.",
            show_default=False,
        ),
    ] = None,
    permutations: Annotated[
        int, typer.Option(rich_help_panel=RANKING, help="Label shufflings for the p-values.", min=99)
    ] = 10_000,
    bootstraps: Annotated[
        int, typer.Option(rich_help_panel=RANKING, help="Resamplings for stability and intervals.", min=10)
    ] = 1_000,
    seed: Annotated[int, typer.Option(rich_help_panel=RANKING, help="Seed of both.")] = 0,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=RESULT, help="Print the result as JSON on stdout also when -o is given."
        ),
    ] = False,
) -> None:
    """Find the experts that a behaviour uses more than other responses do (functional Token Resonance Imaging).

    Counts, for every prompt, how many tokens selected each expert, and ranks experts by the mean of the class minus the
    mean of the others.

    Example: mote-ftri traces --behavior refused -o refusal.json --report report

    Example: mote-ftri --imatrix refused=r.gguf --imatrix answered=a.gguf --behavior refused -o refusal.json
    """
    from ftri.analysis.find import find, open_traces
    from ftri.analysis.findings import FindOptions, check_same_model, compare, expert_set_of
    from rewriter.errors import InputError
    from rewriter.expert_set import ExpertSet

    totals = _totals(traces or [], imatrix or [])
    if totals is not None:
        if (traces and imatrix) or report or labels or compare_with:
            raise InputError(
                "class totals (--imatrix, or a file) go without trace folders, --labels, --compare and --report, which need"
                " single responses; mote-record keeps those"
            )
        _find_by_counts(totals, behavior, k, statistic, output, json_output)
        return
    if not traces:
        raise InputError(
            "nothing to analyse: give trace folders (mote-record writes them), a file of class totals (mote-ftri import does),"
            " or --imatrix CLASS=FILE for each class"
        )
    options = FindOptions(
        behavior=behavior,
        k=k,
        statistic=statistic or "paper",
        positions=positions,
        labels=labels,
        label_cut=label_cut,
        think_format=think_format,
        num_permutations=permutations,
        num_bootstraps=bootstraps,
        seed=seed,
    )
    other = None
    if compare_with is not None:
        other = ExpertSet.load(compare_with)
        check_same_model(open_traces(traces)[0].manifest, other, compare_with.name)
    findings = find(traces, options, _progress)
    expert_set = expert_set_of(findings)
    if other is not None and compare_with is not None:
        agreement = compare(findings, other)
        expert_set.provenance["compared_with"] = {"file": compare_with.name, **agreement}
        say(
            f"{agreement['num_shared']} experts shared with {compare_with.name} (Jaccard {agreement['jaccard']:.2f});"
            f" its experts rank {', '.join(map(str, agreement['ranks_here']))} here"
        )
    _say_summary(findings)
    _put_out(expert_set, output, json_output)
    if report is not None:
        from ftri.report.page import write_report

        say(f"wrote {write_report(findings, traces, report, tokenizer)}")


def _totals(paths: list[Path], imatrix: list[str]) -> ClassTotals | None:
    """The class totals that were given instead of trace folders, None where none were."""
    from ftri.analysis.class_counts import imatrix_totals
    from ftri.traces.class_totals import load_class_totals
    from rewriter.errors import InputError

    if imatrix:
        files: dict[str, Path] = {}
        for pair in imatrix:
            name, _, path = pair.partition("=")
            if not name or not path or name in files:
                raise InputError(f"--imatrix {pair}: expected CLASS=FILE, each class once")
            files[name] = Path(path)
        return imatrix_totals(files)
    if len(paths) == 1 and paths[0].is_file():
        return load_class_totals(paths[0])
    return None


def _find_by_counts(
    totals: ClassTotals, behavior: str, k: int, statistic: str | None, output: Path | None, json_output: bool
) -> None:
    """The path without traces: a ranking by class totals."""
    from ftri.analysis.class_counts import LIMITS, STATISTICS, expert_set_of_counts, find_by_counts

    findings = find_by_counts(totals, behavior, k, statistic or STATISTICS[0])
    say("tokens: " + ", ".join(f"{name} {number}" for name, number in findings.num_tokens.items()))
    say(f"{'rank':>4} {'layer':>5} {'expert':>6} {'score':>9} {'of the class':>12} {'of the others':>13}")
    for number, found in enumerate(findings.experts, start=1):
        say(
            f"{number:>4} {found.layer:>5} {found.expert:>6} {found.score:>9.4g} {found.share_class:>12.2%}"
            f" {found.share_others:>13.2%}"
        )
    for note in (LIMITS, *totals.notes):
        say(f"note: {note}")
    for warning in findings.warnings:
        say(f"warning: {warning}")
    _put_out(expert_set_of_counts(findings), output, json_output)


def _put_out(expert_set: ExpertSet, output: Path | None, json_output: bool) -> None:
    """Write the expert set where it was asked for, or print it."""
    if output is not None:
        make_folder(output.parent)
        expert_set.save(output)
        say(f"wrote {output}")
    if output is None or json_output:
        typer.echo(printed_json(expert_set.to_json()), nl=False)


@app.command()
def merge(
    folders: Annotated[
        list[Path], typer.Argument(help="Trace folders of one model and chat template.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.", show_default=False)],
    json_output: Annotated[bool, typer.Option("--json", help="Print the count as JSON.")] = False,
) -> None:
    """Add trace folders that were recorded on different machines or in several sittings.

    Example: mote-ftri merge traces-a traces-b -o traces
    """
    from ftri.traces.merge import merge_traces

    count = merge_traces(folders, output)
    say(f"{output} holds {count} responses")
    if json_output:
        typer.echo(json.dumps({"output": str(output), "num_responses": count}))


@app.command("import")
def import_command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|CLASS=FILE",
            help="Responses: SGLang's dumps in per_token mode (.pt), servers' answers with routing (.jsonl), vLLM's"
            " routed_experts (.npy). Or CLASS=FILE: the class of an SGLang dump in stat or per_pass mode.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="The trace folder to write; with CLASS=FILE the JSON file.", show_default=False
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Model folder or Hub id; config and tokenizer are enough.", show_default=False)
    ],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub model.", show_default=False)] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make a trace folder, or class totals, of recordings that another runtime made.

    What a format does not know (request ids, texts, ends) is said; labels are given with mote-ftri --labels.

    Example: mote-ftri import expert_distribution_recorder_1_0.pt --model deepseek-ai/DeepSeek-R1 -o traces

    Example: mote-ftri import refused=refused.pt answered=answered.pt --model deepseek-ai/DeepSeek-R1 -o totals.json
    """
    from dataclasses import asdict

    from ftri.foreign.imports import import_recordings, import_totals

    classes = _classes_of(files)
    if classes:
        totals = import_totals(classes, output, model, revision, say)
        numbers = {name: max(counted.num_tokens.values()) for name, counted in totals.classes.items()}
        say(f"{output} holds totals of " + ", ".join(f"{name} ({number} tokens)" for name, number in numbers.items()))
        notes, document = totals.notes, {"output": str(output), "num_tokens": numbers, "notes": totals.notes}
    else:
        summary = import_recordings([Path(name) for name in files], output, model, revision, say)
        say(f"{output} holds {summary.responses} responses, {summary.tokens} tokens")
        notes, document = summary.notes, asdict(summary)
    for note in notes:
        say(f"note: {note}")
    if json_output:
        typer.echo(json.dumps(document))


def _classes_of(files: list[str]) -> dict[str, list[Path]]:
    """CLASS=FILE arguments by class; empty where plain files are given."""
    from rewriter.errors import InputError

    pairs = [(name, "=" in name and not Path(name).exists()) for name in files]
    plain = [name for name, is_pair in pairs if not is_pair]
    if plain and len(plain) < len(files):
        raise InputError(
            f"{plain[0]}: has no class, the other files do; expected CLASS=FILE for all of them or for none"
        )
    classes: dict[str, list[Path]] = {}
    for name, is_pair in pairs:
        if is_pair:
            label, _, path = name.partition("=")
            if not label or not path:
                raise InputError(f"{name}: expected CLASS=FILE, as refused=expert_distribution_recorder_1.pt")
            classes.setdefault(label, []).append(Path(path))
    return classes


def _progress(name: str, total: int) -> Progress:
    """A progress bar on stderr for one step, closed when its total is reached."""
    bar = progress_bar(total, name, unit="", leave=False)

    def advance(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()

    return advance


def _say_summary(findings: Findings) -> None:
    """The classes, the ranking and the warnings, for people."""
    counts = ", ".join(f"{label} {number}" for label, number in findings.class_counts.items())
    left_out = ", ".join(f"{label} {number}" for label, number in sorted(findings.maps.dropped.items()))
    say(f"responses: {counts}" + (f"; left out: {left_out}" if left_out else ""))
    say(
        f"{'rank':>4} {'layer':>5} {'expert':>6} {'score':>9} {'95 % interval':>21} {'max-T p':>8} {'BH q':>8} {'in top k':>8}"
    )
    for number, found in enumerate(findings.top, start=1):
        interval = f"{found.interval[0]:.4g} .. {found.interval[1]:.4g}"
        say(
            f"{number:>4} {found.layer:>5} {found.expert:>6} {found.score:>9.4g} {interval:>21}"
            f" {found.p_max_t:>8.2g} {found.q_benjamini_hochberg:>8.2g} {found.stability:>8.0%}"
        )
    for warning in findings.warnings:
        say(f"warning: {warning}")


def main() -> None:
    """Entry point of `mote-ftri`."""
    run(app)


if __name__ == "__main__":
    main()
