"""Several evaluations beside each other: the figures of each, the front, the pictures, and what is refused."""

import json
import re
from html.parser import HTMLParser

import pytest
from running import run_main

from eval.cli import main
from eval.compare.comparable import Evaluation, check_comparable
from eval.compare.drawing import forest, forest_groups, pareto, shortened
from eval.compare.page import compare_results, read_source, render
from eval.compare.table import one_screen
from eval.compare.variants import Comparisons, compare_evaluations, front
from eval.outcomes.statistics import Interval, wilson
from rewriter.errors import InputError


@pytest.fixture
def results(finished):
    return finished[1]


@pytest.fixture
def found(results):
    return compare_evaluations([Evaluation("one", results)])


def with_figures(variant, number, kl, moved, name="variant"):
    """A variant that moves `moved` of 40 for a KL of `kl`."""
    interval = None if kl is None else Interval(estimate=kl, low=0.9 * kl, high=1.1 * kl, num_clusters=6)
    change = variant.moved.model_copy(update={"rate": wilson(moved, 40)})
    return variant.model_copy(
        update={"number": number, "name": name, "kl": interval, "moved": change, "on_front": False}
    )


def test_a_variant_has_the_figures_of_its_evaluation(results, found):
    by_name = {one.name: one for one in found.variants}
    assert list(by_name) == ["variant", "variant-drop", "variant-drop-renorm", "other-set"]
    for comparison in results.comparisons:
        one = by_name[comparison.after]
        assert (one.moved, one.returned, one.changed) == (comparison.moved, comparison.returned, comparison.changed)
        for transition in one.transitions:
            assert transition.rate.count == comparison.matrix.count(transition.before, transition.after)
            assert transition.before != transition.after and transition.rate.total > 0
    divergences = {one.right: one for one in results.fidelity[0].divergences if one.left == "base"}
    for semantics, name in (("reroute", "variant"), ("drop", "variant-drop"), ("drop-renorm", "variant-drop-renorm")):
        assert by_name[name].kl == divergences[semantics].answer_tokens and by_name[name].kl_is_exact
    assert by_name["other-set"].kl == results.divergences[0].answer_tokens and by_name["other-set"].kl_is_exact
    # Only the experts under test are set against chance.
    assert by_name["other-set"].chance == []
    assert [one.p_value for one in by_name["variant"].chance] == [one.p_value for one in results.controls]
    assert by_name["variant"].edit == "3 experts suppressed, reroute" and by_name["variant"].num_experts == 3
    assert found.repeat_flips == results.repeat_flips
    older = compare_evaluations([Evaluation("one", results.model_copy(update={"divergences": []}))])
    assert "No KL was measured for 4" in " ".join(older.notes)
    # What is dropped in part is as far as that is, not as a whole drop.
    fidelity = results.fidelity[0]
    kept = Interval(estimate=0.001, low=0.0009, high=0.0011, num_clusters=6)
    part = next(one for one in fidelity.divergences if (one.left, one.right) == ("base", "drop"))
    part = part.model_copy(update={"right": "drop in part", "answer_tokens": kept})
    fidelity = fidelity.model_copy(update={"divergences": [*fidelity.divergences, part]})
    scaled = [
        arm.model_copy(update={"factors": [(*arm.suppress[0], 0.5)]}) if arm.semantics == "drop" else arm
        for arm in results.arms
    ]
    in_part = compare_evaluations(
        [Evaluation("one", results.model_copy(update={"fidelity": [fidelity], "arms": scaled}))]
    )
    assert in_part.variants[1].kl == kept and in_part.variants[1].edit.endswith("drop (1 of them in part)")
    # An edit of both kinds is neither of the two that were measured.
    both = [arm.model_copy(update={"stimulate": [(1, 1)]}) if arm.kind == "variant" else arm for arm in results.arms]
    mixed = compare_evaluations([Evaluation("one", results.model_copy(update={"arms": both}))])
    assert [one.kl is None for one in mixed.variants] == [True, True, True, False]


def test_variants_of_several_evaluations_are_told_apart(results):
    found = compare_evaluations([Evaluation("one", results), Evaluation("two", results)])
    assert [one.number for one in found.variants] == list(range(1, 9))
    assert found.variants[4].name == "two: variant"
    single = results.model_copy(update={"comparisons": results.comparisons[:1]})
    assert [one.name for one in compare_evaluations([Evaluation("a", single), Evaluation("b", single)]).variants] == [
        "a",
        "b",
    ]


def test_the_front_is_what_nothing_beats(found):
    variant = found.variants[0]
    figures = [(0.05, 30), (0.01, 10), (0.02, 10), (0.02, 20), (0.05, 35), (0.3, 35), (None, 40), (0.01, 10)]
    variants = [with_figures(variant, number, *pair) for number, pair in enumerate(figures, start=1)]
    assert [one.number for one in front(variants)] == [2, 8, 4, 5]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"subject": {"model": "another"}}, "another base (model another, expected model double)"),
        ({"prompts": {"num_prompts": 60, "tested_sha256": "0" * 64}}, "another prompts"),
        ({"tool_version": "9"}, "another labelling (version of the rules 9, expected version of the rules"),
        ({"mode": "served"}, "another base (answered by served"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, change, sentence):
    other = results.model_copy(update=change)
    with pytest.raises(InputError) as refused:
        check_comparable([Evaluation("first", results), Evaluation("second", other)])
    assert str(refused.value).startswith("second cannot be compared with first: another ")
    assert sentence.replace("another prompts", "another prompts (tested_sha256 000000") in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value"), [("max_tokens", 2048), ("temperature", 0.6), ("label_cut", True), ("kl_tokens", 8)]
)
def test_other_ways_of_asking_are_refused(results, option, value):
    other = results.model_copy(update={"options": results.options | {option: value}})
    told = json.dumps(results.options[option])
    with pytest.raises(InputError, match=rf"{option} {json.dumps(value)}.*expected {option} {told}"):
        check_comparable([Evaluation("first", results), Evaluation("second", other)])


def test_another_count_judge_or_set_of_protection_is_refused(results):
    target = results.model_copy(update={"target": results.target | {"label": "ALIGNED"}})
    with pytest.raises(InputError, match=r"another counted change \(label ALIGNED, expected label REFUSED\)"):
        check_comparable([Evaluation("first", results), Evaluation("second", target)])
    harm = results.safety[0].model_copy(update={"source": {"spec": "other.csv", "sha256": "1" * 64}})
    with pytest.raises(InputError, match="another set of prompts for harm"):
        check_comparable([Evaluation("first", results), Evaluation("x", results.model_copy(update={"safety": [harm]}))])


def test_what_only_says_what_else_was_measured_may_differ(results):
    options = results.options | {"controls": 9, "sweep_k": [1], "seed": 5}
    other = results.model_copy(update={"options": options, "controls": [], "safety": [], "fidelity": []})
    check_comparable([Evaluation("first", results), Evaluation("second", other)])
    drawn = results.model_copy(update={"options": results.options | {"temperature": 0.6}})
    seeded = drawn.model_copy(update={"options": drawn.options | {"seed": 1}})
    with pytest.raises(InputError, match="seed 1, expected seed 0"):
        check_comparable([Evaluation("first", drawn), Evaluation("second", seeded)])


def test_the_base_must_have_answered_alike_or_it_is_said(results):
    arms = [arm.model_copy(deep=True) for arm in results.arms]
    arms[0].labels["REFUSED"] = wilson(arms[0].labels["REFUSED"].count - 2, arms[0].num_answers)
    other = results.model_copy(update={"arms": arms})
    notes = compare_evaluations([Evaluation("first", results), Evaluation("second", other)]).notes
    assert "The base itself did not answer alike in all evaluations (REFUSED: 24 in first, 22 in second)" in notes[0]


def test_a_served_base_goes_by_its_own_name_not_the_variants(results):
    models = {"None": "r1", "tuned": "r1-mote"}
    served = {"mode": "served", "subject": {"model": "r1-mote", "models": models, "base_url": "http://a"}}
    one = results.model_copy(update=served)
    assert compare_evaluations([Evaluation("one", one)]).base == "r1"
    other = one.model_copy(update={"subject": one.subject | {"models": models | {"None": "v3"}}})
    with pytest.raises(InputError, match=r"another base \(model v3, expected model r1\)"):
        check_comparable([Evaluation("one", one), Evaluation("two", other)])
    assert compare_evaluations([Evaluation("one", results)]).base == "double"


def test_a_source_is_a_folder_a_file_or_a_name_for_one(finished, tmp_path):
    folder = finished[0]
    assert read_source(str(folder)).name == folder.name == read_source(str(folder / "results.json")).name
    assert read_source(f"mine={folder}").name == "mine"
    (tmp_path / "a=b").mkdir()
    (tmp_path / "a=b" / "results.json").write_bytes((folder / "results.json").read_bytes())
    assert read_source(str(tmp_path / "a=b")).name == "a=b"
    with pytest.raises(InputError, match="the name before = is empty"):
        read_source(f"={folder}")
    with pytest.raises(InputError, match="cannot be read"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["arms"].pop(0), 'has no "the arm base", expected'),
        (lambda d: d.update(primary="other"), 'has no "the arm other"'),
        (lambda d: d.update(comparisons=[]), 'has no "comparisons[0] with variant"'),
        (lambda d: d["target"].pop("label"), 'has no "target.label"'),
        (lambda d: d["target"].update(label="SANG"), 'has no "a share of SANG on the axis behavior"'),
        (lambda d: d["prompts"].pop("spec"), 'has no "prompts.spec"'),
        (lambda d: d["comparisons"][0]["matrix"]["rates"].pop(), "are no table of 6 by 6 labels"),
        (lambda d: d.update(schema="mote.results/9"), "is not a result of mote.results/1"),
        (
            lambda d: d["repeat_flips"].update(rate=float("nan")),
            "is not a result of mote.results/1 (no JSON: the number NaN is not finite",
        ),
    ],
)
def test_results_that_are_not_whole_are_refused(finished, tmp_path, change, sentence):
    document = json.loads((finished[0] / "results.json").read_text())
    change(document)
    (tmp_path / "results.json").write_text(json.dumps(document))
    ran = run_main(main, "mote-eval", "compare", tmp_path, "-o", tmp_path / "out")
    assert ran.returncode == 1 and sentence in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    long = run_main(main, "mote-eval", "compare", "x" * 5000, "-o", tmp_path / "out")
    assert long.returncode == 1 and "cannot be read" in long.stderr


def test_figures_without_an_end_do_not_hold_up_a_picture(found):
    endless = with_figures(found.variants[0], 1, float("inf"), 3)
    assert "<svg" in pareto(found.model_copy(update={"variants": [endless]}))


class Texts(HTMLParser):
    """The texts of a picture's elements, by their place."""

    def __init__(self, svg):
        super().__init__()
        self.open, self.texts, self.circles, self.lines, self.paths = [], [], [], [], []
        self.feed(svg)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        values = dict(attributes)
        if tag == "circle":
            self.circles.append(values)
        if tag == "line":
            self.lines.append(values)
        if tag == "path":
            self.paths.append(values)

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("text", "title"):
            self.texts.append(data)


def test_the_forest_has_every_rate_in_its_place(found):
    groups = forest_groups(found)
    assert [group.title for group in groups][:3] == [
        "REFUSED -> answered",
        "other -> REFUSED",
        "another label than the base's",
    ]
    singles = {group.title: group for group in groups[3:]}
    assert set(singles) == {"REFUSED -> ALIGNED", "REFUSED -> REASONED"}
    assert all(len(group.rows) == 4 for group in groups)
    svg = forest(groups)
    drawn = Texts(svg)
    assert len(drawn.circles) == 4 * len(groups)
    # From 0 % at 220 to 100 % at 650 of the picture's width.
    for circle, (_, _, rate) in zip(drawn.circles, (row for group in groups for row in group.rows), strict=True):
        assert float(circle["cx"]) == pytest.approx(220 + 430 * rate.rate, abs=0.06)
    assert "18/24 75.0 %" in drawn.texts and "dashed: the base run twice, 0.0 %" in drawn.texts
    assert any("95 % CI 55.1-88.0" in text for text in drawn.texts)
    assert "share of the answers that could make the change" in drawn.texts


def test_the_front_is_drawn_and_what_it_beats_is_hollow(found):
    figures = [(0.01, 10), (0.02, 20), (0.03, 15), (None, 40)]
    variants = [with_figures(found.variants[0], number, *pair) for number, pair in enumerate(figures, start=1)]
    for one in front(variants):
        one.on_front = True
    drawn = Texts(pareto(found.model_copy(update={"variants": variants})))
    assert [circle["fill"] for circle in drawn.circles] == ["#d55e00", "#d55e00", "white"]
    x, y = ([float(circle[name]) for circle in drawn.circles] for name in ("cx", "cy"))
    assert x[0] < x[1] < x[2] and y[1] < y[2] < y[0]
    steps = [tuple(map(float, place)) for place in re.findall(r"[ML]([\d.]+),([\d.]+)", drawn.paths[0]["d"])]
    assert (x[0], y[0]) in steps and (x[1], y[0]) in steps and (x[1], y[1]) in steps and (x[2], y[2]) not in steps
    assert [text for text in drawn.texts if text in {"1", "2", "3", "4"}] == ["1", "2", "3"]
    nothing = [with_figures(found.variants[0], 1, None, 3)]
    assert pareto(found.model_copy(update={"variants": nothing})) == ""
    # A base whose every answer stays, and a change that nobody could make.
    still = with_figures(found.variants[0], 1, 0.0, 0)
    assert "<svg" in pareto(found.model_copy(update={"variants": [still]}))


def test_long_names_keep_both_ends():
    assert shortened("refusal") == "refusal"
    assert shortened("results-with-a-very-long-name-drop") == "results-with\u2026ng-name-drop"


def test_the_command_writes_the_page_and_its_figures(finished, tmp_path):
    folder, results, _ = finished
    ran = run_main(main, "mote-eval", "compare", folder, f"again={folder}", "-o", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines() == [str(tmp_path / "out" / "compare.html")]
    assert re.search(
        r"^1 +\S+: variant +3 experts suppressed, reroute +18/24 75.0 % +55.1 % to 88.0 % +0/36 0.0 % +0\.\d{4} +\*$",
        ran.stdout,
        re.M,
    )
    saved = Comparisons.model_validate_json((tmp_path / "out" / "compare.json").read_text())
    assert len(saved.variants) == 8 and saved.target == results.target
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page
    assert "default-src &#39;none&#39;" in page and "script-src" not in page
    as_json = run_main(main, "mote-eval", "compare", folder, "-o", tmp_path / "out", "--json", "--quiet")
    assert json.loads(as_json.stdout)["schema"] == "mote.compare/1" and as_json.stderr == ""


def test_a_refusal_leaves_nothing(finished, tmp_path):
    folder, results, _ = finished
    (tmp_path / "other").mkdir()
    results.model_copy(update={"subject": {"model": "other"}}).save(tmp_path / "other" / "results.json")
    ran = run_main(main, "mote-eval", "compare", folder, tmp_path / "other", "-o", tmp_path / "out")
    assert ran.returncode == 1 and not (tmp_path / "out").exists()
    assert ran.stderr.startswith("error: other cannot be compared with ") and len(ran.stderr.splitlines()) == 1
    doubled = run_main(main, "mote-eval", "compare", folder, folder, "-o", tmp_path / "out")
    assert "give one another name: NAME=RESULTS" in doubled.stderr
    assert run_main(main, "mote-eval", "compare", "-o", tmp_path / "out").returncode == 2


def test_names_are_text_and_steer_no_terminal(found):
    hostile = "<img src=x onerror=1>\x1b[31m"
    variants = [one.model_copy(update={"name": hostile, "edit": hostile}) for one in found.variants]
    changed = found.model_copy(update={"variants": variants, "notes": [hostile], "sources": {hostile: hostile}})
    assert "<img" not in render(changed)
    assert any(hostile in line for line in one_screen(changed)), "which the command escapes, see test_hostile_words"


def test_the_library_does_what_the_command_does(finished, tmp_path):
    found = compare_results([str(finished[0])], tmp_path)
    assert found == Comparisons.model_validate_json((tmp_path / "compare.json").read_text())
