"""Reports and cards made of hostile text, opened in a browser: no script of a prompt, a response or a name runs."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import synthetic
from chromium import FLAGS, chromium_path
from doubles import MOE_LAYERS
from fake_run import evaluate

from eval.compare.comparable import Evaluation
from eval.compare.page import render as render_comparison
from eval.compare.variants import compare_evaluations
from eval.refine.page import render as render_refine
from eval.refine.results import DecidingPlace, RefineResults
from eval.report.outputs import update_card
from eval.report.page import render_report
from eval.results import Example, ExampleAnswer, Missing
from ftri.analysis.find import find
from ftri.analysis.findings import FindOptions
from ftri.report.page import write_report
from ftri.traces.writer import write_traces
from rewriter.variant.card import CardFacts, EditedExpert, build_card
from rewriter.variant.card_parts import split_card

# Leaves a mark in the document that the text itself does not have.
RUN = "void(document.documentElement.dataset['r'+'an']='yes')"
MARK = 'data-ran="yes"'
HOSTILE = [
    f"</script><script>{RUN}</script>",
    f"</pre></td></title></style></textarea><svg onload={RUN}>",
    f'<img src=x onerror="{RUN}">',
    f"\"><img src=x onerror='{RUN}'>",
    f"' autofocus tabindex=0 onfocus=\"{RUN}\" x='",
    f"[click](javascript:{RUN})",
    f'![x](x" onerror="{RUN})',
    f"<javascript:{RUN}>",
    f'<a href="javascript:{RUN}">here</a>',
    f"--> <!-- mote-eval:end --> <script>{RUN}</script>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    f"\u202e<script>{RUN}</script>\u2066\x1b[31m",
    f"` ``` \n\n<script>{RUN}</script>\n\n---\n",
]
ALL = " ".join(HOSTILE)
# A reader who clicks on everything; only links of scripts are followed, since others lead away.
VISITOR = """<script>for (const one of document.querySelectorAll("a[href], button, option, mark"))
if (!one.href || one.protocol === "javascript:") one.click();
for (const one of document.querySelectorAll("select, input"))
for (const kind of ["input", "change"]) one.dispatchEvent(new Event(kind, {bubbles: true}));</script>"""


def opened(html: str, folder: Path) -> str:
    """The document as Chromium has it after the page's scripts have run and everything was clicked.

    Without the page's own policy, which would stop what ought not to be there at all.
    """
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    page = folder / "page.html"
    page.write_text(html + VISITOR, encoding="utf-8", errors="replace")
    command = [
        chromium_path(),
        *FLAGS,
        "--virtual-time-budget=3000",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<body" in shown.stdout, shown.stderr[-2000:]
    return shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("text", [HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[8]])
def test_the_check_sees_a_script_that_runs(text: str, tmp_path: Path) -> None:
    assert MARK in opened(f"<html><body><p>{text}</p></body></html>", tmp_path)


def hostile_evaluation(folder: Path):
    """Results of the stand-in whose every foreign text is hostile."""
    results, _ = evaluate(folder)
    answers = [ExampleAnswer(arm="base", label="REFUSED", text=text, finish_reason=ALL) for text in HOSTILE]
    return results.model_copy(
        update={
            "subject": {"model": ALL, "variant": ALL},
            "behavior": ALL,
            "prompts": results.prompts | {"spec": ALL},
            "examples": [Example(prompt_id=ALL, prompt=text, answers=answers, why=ALL) for text in HOSTILE],
            "warnings": HOSTILE,
            "missing": [Missing(part=text, reason=text) for text in HOSTILE],
            "safety": [one.model_copy(update={"name": ALL}) for one in results.safety],
            "held_out": results.held_out.model_copy(update={"sentence": ALL}),
        }
    )


@pytest.mark.slow
def test_no_script_of_an_evaluation_runs(tmp_path: Path) -> None:
    """The report, and the card with its sections as a page that lets HTML and every link through."""
    from markdown_it import MarkdownIt

    results = hostile_evaluation(tmp_path)
    page = render_report(results)
    assert RUN.split("[")[0] in page
    assert MARK not in opened(page, tmp_path)

    rows = [EditedExpert(3, 1, "suppress", "-inf", 0.5)]
    facts = CardFacts(ALL, "reroute", rows, "vllm serve ./x", "1", ALL, ALL, ALL, ALL, True, ALL, (*HOSTILE,))
    (tmp_path / "README.md").write_text(build_card(facts), encoding="utf-8")
    update_card(tmp_path, results)
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    _, body = split_card((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert "mote-eval" in body
    assert MARK not in opened(f"<html><body>{renderer.render(body)}</body></html>", tmp_path)


@pytest.mark.slow
def test_no_script_of_a_comparison_runs(tmp_path: Path) -> None:
    """Names of evaluations and their variants, what they were of, and everything that is noted."""
    results = hostile_evaluation(tmp_path)
    changed = [
        results.model_copy(
            update={
                "arms": [
                    arm.model_copy(update={"checkpoint": ALL, "suppress": [], "stimulate": []}) for arm in results.arms
                ],
                "prompts": results.prompts | {"spec": text},
                "created": text,
            }
        )
        for text in HOSTILE
    ]
    names = [f"{text} {number}" for number, text in enumerate(HOSTILE)]
    found = compare_evaluations([Evaluation(*pair) for pair in zip(names, changed, strict=True)])
    for variant in found.variants:
        variant.semantics = variant.held_out = variant.moved.description = variant.returned.description = ALL
        for one in variant.chance:
            one.matching = ALL
        for one in variant.safety:
            one.name = one.groups[0].group = ALL
    for number, text in enumerate(HOSTILE):
        found.variants[number].transitions[0].before = text
    found.target["change"] = ALL
    page = render_comparison(found)
    assert RUN.split("[")[0] in page
    assert MARK not in opened(page, tmp_path)


@pytest.mark.slow
def test_no_script_of_a_search_runs(tmp_path: Path) -> None:
    results = RefineResults(
        schema="mote.refine/1",
        tool_version=ALL,
        subject={"model": ALL},
        options={"target": ALL, "semantics": ALL, "screen_prompts": 3},
        num_finding=1,
        num_finding_target=1,
        num_testing=1,
        base_chance=0.5,
        deciding=[DecidingPlace(before=text, next=[(text, 0.5)]) for text in HOSTILE],
        layers=list(MOE_LAYERS),
        num_experts=2,
        resonance=[[0.0, 1.0]] * len(MOE_LAYERS),
        screened=[],
        path=[],
        chosen=[],
        moved=0,
        kl=0,
        ended=ALL,
        num_edits=0,
        num_screen_tokens=0,
        seconds=1,
    )
    assert MARK not in opened(render_refine(results, None), tmp_path)


@pytest.mark.slow
def test_no_script_of_a_trace_runs(tmp_path: Path) -> None:
    """Prompts, responses, the model's name and the tokens are hostile; the page has a script of its own, which runs."""
    plan = synthetic.Plan(times=("1990", "1991", "1992", "1993"))
    (tmp_path / "model").mkdir()
    vocabulary = {f"{HOSTILE[number % len(HOSTILE)]}{number}": number for number in range(1300)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    records = list(synthetic.records(plan))
    for number, record in enumerate(records):
        text = HOSTILE[number % len(HOSTILE)]
        record.prompt = record.rendered_prompt = f"{text} {record.prompt}"
        record.text += text
    write_traces(tmp_path / "t", synthetic.manifest(plan, model=ALL), records)
    found = find([tmp_path / "t"], FindOptions("refused", 4, num_permutations=99, num_bootstraps=10))
    page = write_report(found, [tmp_path / "t"], tmp_path / "r", str(tmp_path / "model")).read_text(encoding="utf-8")
    shown = opened(page, tmp_path)
    assert 'data-ready="yes"' in shown
    assert MARK not in shown
