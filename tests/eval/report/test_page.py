"""The report and the card's sections say what the results say, and need nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest
from fake_run import PROMPTS

from eval.display.drawing import dumbbell, round_share
from eval.measures import controls
from eval.measures.controls import null_histogram
from eval.measures.mt_bench import CategoryScore, MtBench
from eval.measures.sweep import sweep_chart
from eval.measures.transitions import transition_diagram, transition_matrix
from eval.outcomes.statistics import Interval
from eval.outcomes.targets import BEHAVIORS
from eval.report.card import results_section, safety_section
from eval.report.outputs import update_card
from eval.report.page import render_report
from eval.report.table import one_screen
from eval.results import Example, ExampleAnswer
from rewriter.errors import InputError

VOID = {"meta", "br", "rect", "circle", "line", "path", "polyline"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self):
        super().__init__()
        self.stack = []
        self.words = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Nothing is opened."""

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.stack == []
    return " ".join(" ".join(parser.words).split())


def with_mt_bench(results):
    one = Interval(estimate=7.5, low=7.0, high=8.0, num_clusters=10)
    row = CategoryScore(category="math", num_questions=10, before=one, after=one, difference=one, paper=(9.35, 9.45))
    bench = MtBench(
        judge="judge",
        arm="variant",
        question_source={},
        judge_prompt_source={},
        num_questions=10,
        categories=[row],
        overall=row.model_copy(update={"category": "all", "paper": None}),
        turns={},
        unrated=["question 3 turn 1 of base"],
    )
    return results.model_copy(update={"mt_bench": bench})


def test_the_report_needs_nothing_from_elsewhere(finished):
    _, results, _ = finished
    html = render_report(results)
    without_namespace = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(src|href|url)\s*[=(]|https?://|@import|<script", without_namespace)


def test_the_report_says_what_the_results_say(finished):
    _, results, _ = finished
    words = parsed(render_report(with_mt_bench(results)))
    moved = results.primary_comparison().moved.rate
    assert f"{moved.count} of {moved.total}" in words
    assert "19 sets matched by layer and activation frequency" in words
    assert "for reference only" in words and "about 40 %" in words
    assert "9.35 / 9.45" in words and "Unrated: question 3 turn 1 of base" in words
    assert all(name in words for name in ("reroute", "drop-renorm", "harm, harmful", "KL(row ‖ column)"))
    assert PROMPTS[0].text in words


def test_shares_of_other_prompts_say_of_how_many(finished):
    """Random sets are run on a sample of the prompts, of which the variant's share is another than of all."""
    _, results, _ = finished
    control, moved = results.controls[-1], results.primary_comparison().moved.rate
    assert control.num_prompts_at_risk < moved.total and control.observed != moved.rate
    of = f"{100 * control.observed:.1f} % of {control.num_prompts_at_risk} prompts at risk, p = "
    assert results_section(results).count(f"variant {of}") == 3
    words = parsed(render_report(results))
    assert f"on {control.num_prompts_at_risk} prompts at risk, of which the variant's share is" in words


def test_answers_that_were_cut_off_are_said_beside_refusals_that_protect(finished):
    """A model that thinks for long and is cut off before it refuses was shown as one that does not refuse."""
    _, results, _ = finished
    assert "cut off" not in safety_section(results)
    safety = [results.safety[0].model_copy(update={"cut_before": 3, "cut_after": 5}), *results.safety[1:]]
    cut = results.model_copy(update={"safety": safety})
    words = f"3 of {safety[0].num_prompts} answers of the base, 5 of the variant"
    assert safety_section(cut).count(words) == parsed(render_report(cut)).count(words) == 1
    assert sum(words in line for line in one_screen(cut)) == 1


def test_no_rate_is_said_of_no_prompts(finished):
    """With no other prompts the opposite change was said to be 0.0 %."""
    _, results, _ = finished
    alone = [one.model_copy(update={"num_other_prompts": 0}) for one in results.controls]
    assert [row[2] for row in controls.rows(alone, results)] == ["-"] * 3
    assert "Opposite change" not in parsed(render_report(results.model_copy(update={"controls": alone})))


def test_what_a_model_wrote_is_escaped(finished):
    _, results, _ = finished
    nasty = "</pre><script>alert(1)</script> & <b>"
    answer = ExampleAnswer(arm="base", label="REFUSED", text=nasty, finish_reason="stop")
    example = Example(prompt_id="x", prompt=nasty, answers=[answer], why="left REFUSED")
    html = render_report(results.model_copy(update={"examples": [example]}))
    assert "<script>" not in html
    assert "alert(1)" in parsed(html)


def test_bands_have_the_width_of_their_counts():
    before = ["REFUSED"] * 60 + ["ALIGNED"] * 40
    after = ["REFUSED"] * 15 + ["ALIGNED"] * 45 + ["ALIGNED"] * 40
    svg = transition_diagram(transition_matrix("behavior", BEHAVIORS, before, after), "base", "variant")
    titles = re.findall(r"<title>(\w+ -&gt; \w+: [^<]+)</title>", svg)
    assert titles == [
        "REFUSED -&gt; REFUSED: 15 of 60 (25.0 %)",
        "REFUSED -&gt; ALIGNED: 45 of 60 (75.0 %)",
        "ALIGNED -&gt; ALIGNED: 40 of 40 (100.0 %)",
    ]
    # Left edge of each band: from the first corner's height to the last one's.
    edges = re.findall(
        r'd="M[\d.]+,([\d.]+) .* L[\d.]+,[\d.]+ C\S+ \S+ [\d.]+,([\d.]+) Z"', svg.replace("<path", "\n<path")
    )
    widths = [float(low) - float(high) for high, low in edges]
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.01)
    assert transition_diagram(transition_matrix("behavior", BEHAVIORS, [], []), "a", "b") == ""


def test_rates_before_and_after_say_of_what_they_are_a_share():
    svg = dumbbell([("HarmBench", 0.9, 0.8), ("none", None, None)], "refused, share of the prompts")
    assert ">refused, share of the prompts</text>" in svg and svg.count("<circle") == 2


def test_every_set_is_in_the_histogram(finished):
    _, results, _ = finished
    counts = [int(n) for n in re.findall(r": (\d+) sets</title>", null_histogram(results.controls[0]))]
    assert sum(counts) == 19


def test_the_sweep_has_the_gain_and_both_costs(finished):
    _, results, _ = finished
    svg = sweep_chart(results.sweep, "REFUSED -> answered")
    for name in (
        "REFUSED -&gt; answered, share of those at risk",
        "cost: other answers changed, share of them",
        "cost: KL from the base (nats per token)",
    ):
        assert f">{name}</text>" in svg
    assert svg.count("<circle") == 3 and svg.count("<rect") == 6


@pytest.mark.parametrize(("highest", "end"), [(0.03, 0.05), (0.05, 0.05), (0.83, 1.0), (0.8, 0.8), (1.0, 1.0)])
def test_axes_end_at_round_shares(highest, end):
    assert round_share(highest) == end


def test_the_card_takes_the_sections_up_and_keeps_the_rest(finished, tmp_path):
    _, results, _ = finished
    card = tmp_path / "README.md"
    card.write_text(
        "---\nlicense: mit\n---\n# Mine\n\n<!-- mote-eval:start -->\nstale words\n<!-- mote-eval:end -->\n\nMy own words.\n"
    )
    update_card(tmp_path, results)
    text = card.read_text()
    assert text.startswith("---\nlicense: mit\n---\n# Mine\n")
    assert "My own words." in text and "stale words" not in text
    moved = results.primary_comparison().moved.rate
    assert f"| REFUSED -> answered | {moved.count} of {moved.total}" in text
    assert "harmful, should be refused" in text
    update_card(tmp_path, results)
    assert card.read_text() == text


def test_a_folder_without_a_card_is_refused(finished, tmp_path):
    _, results, _ = finished
    with pytest.raises(InputError, match="expected the model card of a variant"):
        update_card(tmp_path, results)


def test_sections_are_tables(finished):
    _, results, _ = finished
    for section in (results_section(with_mt_bench(results)), safety_section(results)):
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1
