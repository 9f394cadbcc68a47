"""The report: one file that needs nothing else, its figures, and what a browser makes of it."""

import base64
import hashlib
import html.parser
import json
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import synthetic
from chromium import browser
from running import run_main

from ftri.analysis.find import find
from ftri.analysis.findings import FindOptions
from ftri.analysis.maps import MapStore, count_selections
from ftri.analysis.resonance import STATISTICS
from ftri.cli.find import main
from ftri.report import examples, figures
from ftri.report import page as report
from ftri.report.cells import cells_of
from ftri.report.token_texts import TokenTexts
from ftri.traces.reader import TraceReader
from ftri.traces.writer import write_traces

FIGURES = {"ftri_map.png", "prompt_map.png", "token_pattern.png", "tsne.png", "ranking.png"}


def write_tokenizer(folder, plan):
    """A word-level tokenizer file for the made-up model; one token is hostile to HTML and to scripts."""
    words = {0: "<user>", 1: " What happened", 2: "\n", 3: "<assistant></script>"}
    words |= {synthetic.FIRST_TIME + number: f" {time}" for number, time in enumerate(plan.times)}
    for number, place in enumerate(plan.places):
        words |= {synthetic.FIRST_PLACE + 2 * number: f" {place}", synthetic.FIRST_PLACE + 2 * number + 1: "?"}
    vocabulary = {
        f"{word}" if list(words.values()).count(word) == 1 else f"{word}{key}": key for key, word in words.items()
    }
    folder.mkdir(exist_ok=True)
    document = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module")
def plan():
    return synthetic.Plan(times=tuple(str(year) for year in range(1990, 1998)))


@pytest.fixture(scope="module")
def traces(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_tokenizer(folder / "model", plan)
    write_traces(folder / "traces", synthetic.manifest(plan, model=str(folder / "model")), synthetic.records(plan))
    return folder / "traces"


@pytest.fixture(scope="module")
def findings(traces):
    return find([traces], FindOptions("refused", 4, num_permutations=99, num_bootstraps=20))


@pytest.fixture(scope="module")
def output(findings, traces):
    folder = traces.parent / "report"
    path = report.write_report(findings, [traces], folder, str(traces.parent / "model"))
    assert path == folder / "report.html"
    return folder


def test_a_trace_does_not_decide_which_folder_is_read(findings, traces, tmp_path):
    """The manifest names the folder of a tokenizer; it is a stranger's, perhaps, and the folder is the user's."""
    text = report.write_report(findings, [traces], tmp_path / "r").read_text(encoding="utf-8")
    assert "Tokens are shown as ids, since no tokenizer.json of" in text


@pytest.fixture(scope="module")
def page(output):
    return (output / "report.html").read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collects elements, and checks that they close in order."""

    VOID = {"meta", "link", "br", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.urls, self.scripts, self.marks = [], [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.marks += tag == "mark"
        self.ids += [values["id"]] if "id" in values else []
        self.urls += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def test_the_page_is_whole_and_refers_to_nothing_outside(page):
    parsed = Page(page)
    assert parsed.open == []
    assert {"map", "prompt-map", "token-map", "plane", "tip", "ranking", "classes", "experts"} <= set(parsed.ids)
    assert all(url.startswith("#") or url == "data:," for url in parsed.urls)
    assert not re.search(r"(?:https?:)?//[a-z]|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))
    assert len(parsed.scripts) == 2, "a token's </script> ends no script"


def test_the_page_holds_the_data_that_the_maps_draw(page, findings, traces, plan):
    data = json.loads(Page(page).scripts[0])
    drawn = np.frombuffer(base64.b64decode(data["maps"]["score"]), "<f4").reshape(findings.scores.shape)
    assert (drawn == findings.scores.astype(np.float32)).all()
    assert [[data["layers"][row], expert] for row, expert in data["top"]] == [
        [found.layer, found.expert] for found in findings.top
    ]
    assert data["layers"] == findings.manifest["moe_layers"]
    assert len(data["plane"]["x"]) == len(findings.maps.observations) == 64
    records = {record.prompt: record for record in TraceReader(traces)}
    assert {example["label"] for example in data["examples"]} == {"REFUSED", "ALIGNED", "REASONED"}
    for example in data["examples"]:
        record = records[example["prompt"]]
        experts = np.frombuffer(base64.b64decode(example["experts"]), "<u2").reshape(-1, 6, 4)
        assert (experts == record.experts).all() and example["numPrompt"] == len(record.prompt_token_ids)
        assert count_selections(experts, 32).sum() == experts.size


def test_a_long_prompt_is_said_to_be_shown_by_its_start(findings, tmp_path):
    """Its map counted the first 96 tokens alone, and was called the prompt's."""
    plan = synthetic.Plan(times=("1990",), extra_fillers=200)
    write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
    reader = TraceReader(tmp_path / "t")
    record = max(reader, key=lambda one: len(one.prompt_token_ids))
    observation = replace(findings.maps.observations[0], prompt_id=record.prompt_id, sample=record.sample)
    maps = replace(findings.maps, observations=[observation])
    (shown,) = examples.load_examples([reader], maps, [0])
    assert len(record.prompt_token_ids) > 96 and shown.is_cut
    assert shown.num_prompt == len(shown.experts) == len(shown.token_ids) == 96
    title = figures.draw_prompt_map(findings, shown).axes[0].get_title()
    assert title.startswith("One prompt's map, its first 96 tokens: ")
    whole = replace(shown, is_cut=False)
    assert figures.draw_prompt_map(findings, whole).axes[0].get_title().startswith("One prompt's map: ")


def test_the_plane_says_how_many_components_it_was_made_of(findings, traces, page):
    """Fewer than 50 of fewer prompts."""
    assert "after 50 principal components" in page
    counts = MapStore(findings.maps.counts.num_columns)
    for number in range(9):
        counts.append(findings.maps.counts.row(number))
    maps = replace(findings.maps, counts=counts, observations=findings.maps.observations[:9])
    plane = examples.lay_out([TraceReader(traces)], maps)
    assert plane.num_components == 8
    texts = TokenTexts("made-up/model", None)
    shown = report.render(findings, report.label_order(findings), [], 0, plane, texts, [])
    assert "after 8 principal components" in shown


def test_marks_of_direction_turn_no_number_round():
    assert report.visible("a\u202eb\u2066\n") == "a\\u202eb\\u2066\u23ce"


def test_cards_show_the_token_that_selects_the_expert_as_text(page):
    # The behaviour is planted at the last token of the template, and text from tokens is escaped.
    assert page.count("&lt;assistant&gt;&lt;/script&gt;</mark>") >= 4
    assert page.count('<article class="card"') == 4
    assert "Tokens are shown as ids" not in page


def test_figures_are_png_files_of_a_size_to_print(output):
    assert {path.name for path in output.iterdir()} == FIGURES | {"report.html"}
    for name in FIGURES:
        content = (output / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", content[16:24])
        assert width > 1000 and height > 500


@pytest.mark.parametrize("statistic", STATISTICS)
def test_colour_bars_and_axes_name_quantity_and_unit(findings, statistic):
    """Not the statistic's option."""
    scale = STATISTICS[statistic].axis
    assert re.fullmatch(r".+ \((tokens per prompt|share of .+|no unit.*)\)", scale)
    shown = replace(findings, options=replace(findings.options, statistic=statistic))
    bar = figures.draw_map(shown).axes[1]
    assert bar.get_ylabel() == scale
    assert figures.draw_ranking(shown).axes[0].get_xlabel().startswith(scale)


def test_the_page_names_quantity_and_unit_of_its_scale(page):
    data = json.loads(Page(page).scripts[0])
    assert data["scale"] == "resonance (tokens per prompt)" and data["quantity"] == "resonance"
    assert "The score is the resonance (tokens per prompt)" in page and "score: resonance</option>" in page


def test_without_a_tokenizer_ids_are_shown_and_the_page_says_so(tmp_path):
    plan = synthetic.Plan(times=("1990", "1991"))
    write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
    arguments = ("--behavior", "refused", "-k", "2", "--permutations", "99", "--bootstraps", "10")
    result = run_main(
        main, "mote-ftri", tmp_path / "t", *arguments, "--report", tmp_path / "r", "-o", tmp_path / "s.json"
    )
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "Tokens are shown as ids, since no tokenizer.json of made-up/model is on this machine" in text
    assert "too few prompts: REFUSED has" in text and "Be careful with this result" in text


def test_a_folder_that_cannot_be_made(traces, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ("--behavior", "refused", "--permutations", "99", "--bootstraps", "10", "--report", tmp_path / "file")
    result = run_main(main, "mote-ftri", traces, *arguments)
    assert result.returncode == 1 and "file: cannot be made a folder for the report" in result.stderr.splitlines()[-1]


def test_the_page_allows_its_own_script_and_nothing_else(page):
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[1])
    assert [f"script-src '{hash_of(one)}'" for one in script] == policy.split("; ")[-1:]
    assert policy.startswith("default-src 'none'") and "unsafe-inline" not in policy.split("script-src")[1]


def hash_of(script):
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_readers_without_a_script_have_the_first_experts_as_a_table(page, findings):
    rows = re.findall(r"<tr( class=top)?><td>(\d+)</td><td>(\d+)</td><td>(\d+)</td><td>([-\d.e]+)</td>", page)
    assert len(rows) == 100 and [bool(row[0]) for row in rows] == [True] * 4 + [False] * 96
    for row, found in zip(rows, findings.experts, strict=False):
        assert (int(row[2]), int(row[3]), row[4]) == (found.layer, found.expert, f"{found.score:.4g}")


def test_maps_of_single_labels_are_their_means(findings):
    cells = cells_of(findings, report.label_order(findings))
    counts = np.concatenate([block for _, block in findings.maps.counts.blocks()])
    assert list(cells.labels.values()) == ["REFUSED", "ALIGNED", "REASONED"]
    # The class is one label, whose map the page has as the class's.
    assert list(cells.shown.values()) == ["ALIGNED", "REASONED"]
    for name, label in cells.labels.items():
        own = [row for row, observation in enumerate(findings.maps.observations) if observation.label == label]
        assert np.allclose(cells.maps[name].reshape(-1), counts[own].mean(axis=0))
    assert np.allclose(cells.maps["label0"], cells.maps["class"])
    for found in findings.experts:
        assert cells.maps["chance"][findings.maps.row_of(found.layer), found.expert] == np.float32(found.p_max_t)


def test_of_many_labels_those_with_most_responses_have_a_map(findings):
    names = [f"other {number % 9}" for number in range(len(findings.maps.observations))]
    observations = [replace(one, label=name) for one, name in zip(findings.maps.observations, names, strict=True)]
    found = replace(
        findings,
        maps=replace(findings.maps, observations=observations),
        class_counts={f"other {number}": 100 + number for number in range(9)},
    )
    cells = cells_of(found, [f"other {number}" for number in range(9)])
    assert list(cells.labels.values()) == [f"other {number}" for number in range(1, 9)]


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.mark.slow
def test_a_browser_draws_it_and_pointing_shows_numbers(page, output, plan, chromium):
    shown = chromium.open((output / "report.html").as_uri(), width=1300, height=1000)
    data = json.loads(Page(page).scripts[0])
    assert shown.value("document.body.dataset.ready") == "yes"
    assert shown.value("document.querySelectorAll('#map circle.ring').length") == 4
    [row, expert] = data["top"][0]
    size = shown.value(
        "(() => { const one = document.querySelector('#map canvas'); return [one.width, one.height]; })()"
    )
    at = ((expert + 0.5) * size[0] / data["numExperts"], (row + 0.5) * size[1] / len(data["layers"]))
    shown.point("#map canvas", at)
    assert shown.text("#tip").startswith(f"layer {data['layers'][row]}, expert {expert} (rank 1)\nresonance: ")
    assert "resonance (tokens per prompt); stronger" in shown.text("#map-legend")
    red, _, blue, _ = shown.value(pixel("#map canvas", at))
    assert red > blue + 80, "the top expert is orange"
    shown.value(choose("#map-choice", "label1"))
    assert "tokens per prompt" in shown.text("#map-legend")
    shown.point("#plane circle, #plane rect, #plane path")
    assert re.match(r"(REFUSED|ALIGNED|REASONED)\nWhat happened 199\d .*\?\n\u2192 <think>", shown.text("#tip"))
    assert shown.value("document.querySelectorAll('#plane > *').length") == 64 + 1
    chips = len(data["examples"][0]["tokens"])
    assert shown.value("document.querySelectorAll('#tokens button').length") == chips
    shown.click("#tokens button:nth-child(2)")
    assert shown.value(
        "[...document.querySelectorAll('#tokens button')].map((one) => one.classList.contains('on'))"
    ) == [number == 1 for number in range(chips)]
    dark = [
        shown.value(pixel("#token-map canvas", ((number + 0.5) * size[0] / data["numExperts"], 4)))[0] < 128
        for number in range(data["numExperts"])
    ]
    assert sum(dark) == plan.top_k
    shown.point("#token-map canvas", (1, 1))
    assert shown.text("#tip").startswith("layer 3, expert 0\n")
    assert shown.overflow() == 0 and shown.errors() == []


@pytest.mark.slow
def test_what_computes_nothing_is_counted_for_no_expert_of_the_next_layer(tmp_path, chromium):
    """Routers with experts that compute nothing select ids behind the others; the page took them for the next layer's first."""
    plan = synthetic.Plan(times=("1990", "1991"))
    write_traces(tmp_path / "t", synthetic.manifest(plan, num_experts=28, num_other_choices=4), synthetic.records(plan))
    findings = find([tmp_path / "t"], FindOptions("refused", 2, num_permutations=99, num_bootstraps=10))
    path = report.write_report(findings, [tmp_path / "t"], tmp_path / "r")
    example = json.loads(Page(path.read_text(encoding="utf-8")).scripts[0])["examples"][0]
    experts = np.frombuffer(base64.b64decode(example["experts"]), "<u2").reshape(-1, 6, 4)[: example["numPrompt"]]
    told = [(row, other) for row in range(5) for other in range(28, 32) if (experts[:, row] == other).any()]
    assert told
    shown = chromium.open(path.as_uri(), width=1300, height=1000)
    size = shown.value(
        "(() => { const one = document.querySelector('#prompt-map canvas'); return [one.width, one.height]; })()"
    )
    for row, other in told:
        at = ((other - 28 + 0.5) * size[0] / 28, (row + 1 + 0.5) * size[1] / 6)
        shown.point("#prompt-map canvas", at)
        count = int((experts[:, row + 1] == other - 28).sum())
        assert shown.text("#tip") == f"layer {row + 4}, expert {other - 28}\n{count} tokens of this prompt"
    assert shown.errors() == []


def pixel(selector, at):
    """An expression for the colour of a canvas's pixel."""
    x, y = map(int, at)
    return f"Array.from(document.querySelector('{selector}').getContext('2d').getImageData({x}, {y}, 1, 1).data)"


def choose(selector, value):
    """An expression that chooses of a list, as a reader does."""
    return (
        f"(() => {{ const one = document.querySelector('{selector}'); one.value = '{value}';"
        " for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind, {bubbles: true})); return one.value; })()"
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A report of R1's size: 58 layers of 256 experts, ten of which carry the behaviour."""
    folder = tmp_path_factory.mktemp("large")
    planted = [(0, 0), (2, 7), (12, 12), (20, 131), (28, 77), (33, 249), (34, 250), (41, 90), (55, 200), (57, 255)]
    times = tuple(str(year) for year in range(1980, 1992))
    plan = synthetic.Plan(num_layers=58, num_experts=256, top_k=8, times=times, behavior_experts=planted)
    write_traces(folder / "t", synthetic.manifest(plan), synthetic.records(plan))
    options = FindOptions("refused", 10, num_permutations=199, num_bootstraps=10)
    findings = find([folder / "t"], options)
    assert {(found.layer - 3, found.expert) for found in findings.top} == set(planted)
    path = report.write_report(findings, [folder / "t"], folder / "r")
    assert path.stat().st_size < 3_000_000
    return path


def place_of(text):
    """(layer, expert) that a text begins with."""
    return tuple(map(int, re.match(r"layer (\d+), expert (\d+)", text).groups()))


@pytest.mark.slow
def test_keys_move_over_a_map_of_the_size_of_r1_and_zoom_into_it(large, chromium):
    shown = chromium.open(large.as_uri(), width=1366, height=768)
    assert shown.overflow() == 0
    assert shown.value("[...document.querySelectorAll('.scroll')].every((one) => one.scrollWidth <= one.clientWidth)")
    assert shown.value("document.querySelector('#map .plot').getBoundingClientRect().height") < 600
    # The Tab key reaches the map, and it can be seen that it did.
    for _ in range(20):
        shown.press("Tab")
        if shown.value("document.activeElement.className") == "plot":
            break
    assert shown.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert shown.value("document.querySelector('#map .readout').getAttribute('aria-live')") == "polite"
    here = lambda: place_of(shown.text("#map .readout"))  # noqa: E731
    assert "(rank 1)" in shown.text("#map .readout"), "the cursor begins at the first ring"
    shown.press("Home", "control")
    assert here() == (3, 0)
    shown.press("ArrowUp")
    shown.press("ArrowLeft")
    assert here() == (3, 0), "the map has edges"
    shown.press("ArrowRight", times=3)
    shown.press("ArrowDown", times=2)
    shown.press("ArrowRight", "shift")
    assert here() == (5, 11)
    shown.press("End")
    shown.press("PageDown")
    assert here() == (15, 255)
    shown.press("End", "control")
    assert here() == (60, 255) and "(rank" in shown.text("#map .readout")
    layers = "[...document.querySelectorAll('#map svg text')].map((one) => one.textContent)"
    assert "3" in shown.value(layers) and "60" not in shown.value(layers), "every other layer is named"
    shown.press("+", times=3)
    assert shown.value("document.querySelectorAll('#map .ring').length") < 10
    named = shown.value(layers)
    assert {"54", "55", "56", "57", "58", "59", "60"} <= set(named) and "3" not in named and "255" not in named[:8]
    shown.press("ArrowLeft", "shift", times=8)
    assert here() == (60, 191), "the view follows the cursor"
    assert shown.value("document.querySelectorAll('#map .cursor').length") == 1
    shown.press("0")
    assert shown.value("document.querySelectorAll('#map .ring').length") == 10
    seen = set()
    for _ in range(10):
        shown.press("n")
        seen.add(re.search(r"\(rank (\d+)\)", shown.text("#map .readout"))[1])
    assert seen == {str(rank) for rank in range(1, 11)}
    shown.press("p")
    layer, expert = here()
    shown.press("Enter")
    assert shown.value("document.activeElement.id") == f"expert-{layer}-{expert}"
    assert shown.errors() == []


@pytest.mark.slow
def test_the_mouse_zooms_drags_and_chooses(large, chromium):
    shown = chromium.open(large.as_uri(), width=1366, height=768)
    shown.click("#map canvas", (4 * 100 + 2, 8 * 10 + 4))
    assert place_of(shown.text("#map .readout")) == (13, 100)
    shown.click("#map button[aria-label='zoom in']")
    shown.click("#map button[aria-label='zoom in']")
    at = shown.point("#map canvas", (500, 200))
    before = place_of(shown.text("#tip"))
    shown.call("Input.dispatchMouseEvent", type="mousePressed", x=at[0], y=at[1], button="left", clickCount=1)
    shown.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0] - 160, y=at[1], button="left", buttons=1)
    shown.call("Input.dispatchMouseEvent", type="mouseReleased", x=at[0] - 160, y=at[1], button="left", clickCount=1)
    assert place_of(shown.text("#map .readout")) == (13, 100), "dragging chooses nothing"
    shown.point("#map canvas", (500, 200))
    assert place_of(shown.text("#tip")) == (before[0], before[1] + 10)


@pytest.mark.slow
def test_the_table_of_all_experts_sorts_and_filters(large, chromium):
    shown = chromium.open(large.as_uri(), width=1366, height=768)
    column = lambda number: [  # noqa: E731
        float(one)
        for one in shown.value(
            f"[...document.querySelectorAll('#cells td:nth-child({number})')].map((one) => one.innerText)"
        )
    ]
    sorts = "[...document.querySelectorAll('#cells th')].map((one) => one.getAttribute('aria-sort'))"
    assert shown.text("#cells-count") == "experts 1 to 25 of 14,848" and column(1) == list(range(1, 26))
    shown.click("#cells-on")
    assert column(1) == list(range(26, 51))
    shown.click("#cells th:nth-child(4) button")
    assert column(4) == sorted(column(4), reverse=True) and shown.value(sorts)[3] == "descending"
    # From the keyboard: the same button once more.
    shown.press("Enter")
    assert column(4) == sorted(column(4)) and column(4)[0] < 0 and min(column(1)) > 14_000
    assert shown.value(sorts) == [None, None, None, "ascending", *[None] * (len(shown.value(sorts)) - 4)]
    shown.click("#cells-layer")
    shown.type("5, 58-60")
    shown.click("#cells-expert")
    shown.type("200-255")
    assert set(column(2)) <= {5, 58, 59, 60} and min(column(3)) >= 200
    assert shown.text("#cells-count") == "experts 1 to 25 of 224 that fit, of 14,848 in all"
    shown.value(choose("#cells-chance", "0.01"))
    assert sorted(zip(column(2), column(3), strict=True)) == [(58, 200), (60, 255)]
    shown.value(choose("#cells-most", "label1"))
    assert shown.text("#cells-count") == "no expert fits, of 14,848 in all"
    shown.value(choose("#cells-most", "label0"))
    assert len(column(1)) == 2
    shown.click("#cells-layer")
    shown.type("x")
    assert "expected numbers and ranges" in shown.text("#cells-count")
    assert shown.value("document.querySelector('#cells-layer').getAttribute('aria-invalid')") == "true"
    shown.press("Backspace")
    shown.click("#cells tbody tr:last-child button")
    assert place_of(shown.text("#map .readout")) in {(58, 200), (60, 255)}
    assert shown.value("document.activeElement.className") == "plot"
    assert shown.errors() == []


@pytest.mark.slow
def test_on_a_telephone_and_without_a_script_it_can_be_read(large, chromium):
    narrow = chromium.open(large.as_uri(), width=400, height=800)
    assert narrow.overflow() == 0 and narrow.errors() == []
    narrow.click("#map canvas")
    assert place_of(narrow.text("#map .readout"))
    narrow.resize(1366, 768)
    narrow.wait_for("document.querySelector('#map canvas').width === 1024")
    plain = chromium.open(large.as_uri(), script=False)
    assert plain.value("document.body.dataset.ready") is None
    assert plain.value("document.querySelectorAll('#cells tbody tr').length") == 100
    assert "ftri_map.png" in plain.text("noscript")
    assert not plain.value("[...document.querySelectorAll('button, select, input')].some((one) => one.offsetParent)")


@pytest.mark.slow
def test_a_script_that_has_got_in_all_the_same_does_not_run(page, tmp_path, chromium):
    (tmp_path / "report.html").write_text(page.replace("<main>", "<main><script>document.title = 'ran'</script>"))
    shown = chromium.open((tmp_path / "report.html").as_uri())
    assert shown.value("document.body.dataset.ready") == "yes" and shown.value("document.title") != "ran"
    assert any("Content Security Policy" in error for error in shown.errors())
