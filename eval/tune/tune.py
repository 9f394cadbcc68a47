"""`mote-tune` as a library: the operations of the single commands, one after the other on one engine.

Every file in the output folder is the one that the single command would have written, so each step can be gone back to
by hand. The prompts are split once: list and search see the finding part alone, and the check the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import rewriter
from eval.answers.journal import Progress
from eval.errors import IncompleteError
from eval.evaluate import check_complete
from eval.outcomes.held_out import split_prompts
from eval.refine.options import RefineRequest, expert_file
from eval.refine.page import PAGE
from eval.refine.refine import refine
from eval.refine.results import FILE_NAME as REFINE_RESULTS
from eval.refine.results import RefineResults
from eval.report.outputs import update_card
from eval.results import FILE_NAME as CHECK_RESULTS
from eval.results import Results
from eval.session import LentEngine, Say
from eval.tune.options import TuneRequest
from eval.tune.plan import as_written
from eval.tune.steps import Steps, file_digest
from ftri.analysis.find import find
from ftri.analysis.findings import FindOptions, expert_set_of
from ftri.engine.engine import Engine, Sampling
from ftri.labels.responses import LabelSettings, labelled
from ftri.labels.think_formats import choose_format
from ftri.prompts.rendering import load_chat_template
from ftri.record import RecordOptions, RecordPlan, plan_recording, record
from ftri.report.page import write_report
from ftri.traces.reader import TraceReader
from ftri.traces.schema import INDEX_NAME, MANIFEST_NAME
from rewriter.errors import InputError
from rewriter.rewrite import RewriteRequest, execute, prepare
from rewriter.semantics import DROP, DROP_RENORM, REROUTE
from rewriter.serve import execute_served, prepare_served
from rewriter.whole_file import make_folder, write_whole

RECORD, LABEL, FIND, RANK = "record", "label", "find", "rank the candidates"
REFINE, WRITE = "refine and check", "write the variant"


@dataclass(frozen=True)
class Tuned:
    """Where everything is, and mote-eval's results of the refined set on the held-out prompts."""

    variant: Path
    check: Results


class OneEngine:
    """The engine of all steps: loaded when the first of them needs it, closed by whoever made this."""

    def __init__(self, plan: RecordPlan) -> None:
        self._plan = plan
        self._engine: Engine | None = None

    def __call__(self) -> Engine:
        """The engine, loaded. Raises: as Engine does."""
        if self._engine is None:
            template = self._plan.options.chat_template
            self._engine = Engine(
                str(self._plan.folder),
                record=True,
                live_edits=True,
                chat_template=load_chat_template(template) if template else None,
                engine_arguments=self._plan.options.engine_arguments,
                weights=self._plan.options.weights,
            )
        return self._engine

    def close(self) -> None:
        """Close it, if it was loaded."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def plan_tuning(request: TuneRequest, say: Say) -> RecordPlan:
    """The recording that everything begins with, worked out; no engine is loaded, nothing is written.

    Raises:
        MoteError: the options, the model or the prompts cannot be used.
    """
    request.check()
    return plan_recording(
        RecordOptions(
            model=request.model,
            prompts=request.prompts,
            output=request.recording,
            revision=request.revision,
            column=request.column,
            chat_template=request.chat_template,
            sampling=Sampling(max_tokens=request.max_tokens),
            engine_arguments=request.engine_arguments,
            weights=request.weights_type,
        ),
        say,
    )


def tune(request: TuneRequest, plan: RecordPlan, say: Say, progress: Progress, engine: LentEngine) -> Tuned:
    """Do all steps that are not done, on the one `engine`.

    Raises:
        IncompleteError: the search found no set, so that there is no variant to write.
        MoteError: as the steps' own operations do; what was done is kept.
    """
    request = as_written(request, plan)
    make_folder(request.output)
    steps = Steps(request.output, rewriter.__version__, say)
    finding, _ = split_prompts(plan.records, request.split, by=request.split_by, seed=request.seed)

    steps.do(RECORD, plan.manifest, [request.recording / INDEX_NAME], lambda: _record(plan, engine, progress))
    recorded = [file_digest(request.recording / name) for name in (MANIFEST_NAME, INDEX_NAME)]
    ids = {prompt.prompt_id for prompt in finding}
    classes = [request.target_label, *request.toward_labels]
    steps.do(
        LABEL, [recorded, sorted(ids), classes, request.think_format], [request.labels], lambda: _label(request, ids)
    )
    options = FindOptions(
        behavior=request.target_label,
        k=request.k,
        statistic=request.statistic,
        positions=request.positions,
        labels=str(request.labels),
        think_format=request.think_format,
        seed=request.seed,
    )
    found_of = [recorded, file_digest(request.labels), asdict(options) | {"labels": None}]
    steps.do(FIND, found_of, [request.found], lambda: _find(request, plan, options, say))
    candidates = []
    if request.num_ranked is not None:
        more = replace(options, k=request.num_ranked)
        steps.do(RANK, [*found_of, more.k], [request.ranked], lambda: _rank(request, more))
        candidates = [file_digest(request.ranked)]
    refinement = request.as_refinement()
    # What lies at these places is in the digests already, however the places are written.
    places = {"model", "revision", "output", "report", "traces"}
    asked = {
        name: str(value) for name, value in asdict(request.as_refinement(recorded=False)).items() if name not in places
    }
    results = refinement.folder / CHECK_RESULTS
    steps.do(
        REFINE,
        [recorded, file_digest(request.found), candidates, asked, _named_files(request)],
        [
            *([request.refined] if _found_a_set(refinement) else []),
            refinement.folder / REFINE_RESULTS,
            refinement.folder / PAGE,
        ],
        lambda: _refine(request, say, progress, engine),
    )
    if not request.refined.is_file():
        former = f"; {request.variant} is of a former search" if request.variant.exists() else ""
        raise IncompleteError(
            f"{request.output} holds everything but a variant: the search found no set, see {refinement.folder / PAGE};"
            f" {request.found} holds mote-ftri's list{former}"
        )
    steps.do(
        WRITE,
        [plan.manifest["content_sha256"], file_digest(request.refined), request.semantics],
        [request.variant],
        lambda: _write(request, say),
    )
    check = Results.load(results)
    update_card(request.variant, check)
    return Tuned(request.variant, check)


def _named_files(request: TuneRequest) -> list[str]:
    """SHA-256 of the files that options of search and check name, which may change under their names."""
    names = [expert_file(request.candidates)[0], *request.compare, request.harm or "", request.xstest or ""]
    return [file_digest(Path(name)) for name in names if os.path.isfile(name)]


def _record(plan: RecordPlan, engine: LentEngine, progress: Progress) -> None:
    done = 0

    def begin(responses: int) -> None:
        advance(responses, 0)

    def advance(responses: int, tokens: int) -> None:
        nonlocal done
        done += responses
        progress(RECORD, done, plan.num_responses)

    record(plan, begin, advance, lambda plan: nullcontext(engine()))


def _label(request: TuneRequest, prompt_ids: Container[str]) -> None:
    """mote-label's lines for the responses that the search may see, of the classes that it compares."""
    reader = TraceReader(request.recording)
    settings = LabelSettings(think_format=choose_format(request.think_format, reader.manifest.get("model_type")))
    classes = {request.target_label, *request.toward_labels}
    lines = []
    for response in reader.metadata():
        if response.prompt_id not in prompt_ids:
            continue
        names = ("prompt_id", "sample", "prompt", "rendered_prompt", "text", "finish_reason")
        entry = labelled({name: getattr(response, name) for name in names}, settings)
        if entry["behavior"] in classes:
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    if not lines:
        raise InputError(
            f"{request.recording}: none of its responses to the finding prompts is {' or '.join(sorted(classes))},"
            " expected some of each; give other --prompts, --behavior or --toward"
        )
    write_whole(request.labels, "".join(lines))


def _find(request: TuneRequest, plan: RecordPlan, options: FindOptions, say: Say) -> None:
    findings = find([request.recording], options)
    for warning in findings.warnings:
        say(f"warning: {warning}")
    expert_set_of(findings).save(request.found)
    say(f"{write_report(findings, [request.recording], request.find_report, str(plan.folder))}")


def _rank(request: TuneRequest, options: FindOptions) -> None:
    expert_set_of(find([request.recording], options)).save(request.ranked)


def _found_a_set(refinement: RefineRequest) -> bool:
    """Whether the search that is there found a set: one without its set is made again, from its journal."""
    path = refinement.folder / REFINE_RESULTS
    return path.is_file() and bool(RefineResults.load(path).chosen)


def _refine(request: TuneRequest, say: Say, progress: Progress, engine: LentEngine) -> None:
    # Of other options, perhaps: a search that finds nothing must not leave it as its own.
    request.refined.unlink(missing_ok=True)
    refinement = request.as_refinement()
    found = refine(refinement, say, progress, engine)
    if found.check is not None:
        check_complete(found.check, refinement.folder)


def _write(request: TuneRequest, say: Say) -> None:
    """The checkpoint of the semantics that were measured; drop-renorm, which none can hold, as a folder that vLLM serves."""
    asked = RewriteRequest(
        suppress=str(request.refined),
        model=request.model,
        revision=request.revision,
        output=request.variant,
        overwrite=True,
    )
    if request.semantics == DROP_RENORM:
        execute_served(prepare_served(replace(asked, semantics=DROP_RENORM), [], say=say))
        return
    execute(prepare(replace(asked, semantics=DROP if request.semantics == DROP else REROUTE), say=say))
