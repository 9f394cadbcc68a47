"""The report: one file that needs nothing else, its figures, and what a browser makes of it."""

import html.parser
import json
import re
import struct
import subprocess

import pytest
import synthetic
from chromium import chromium_path
from running import run_main

from ftri.analysis.find import find
from ftri.analysis.findings import FindOptions
from ftri.analysis.maps import count_selections
from ftri.cli.find import main
from ftri.report import page as report
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
def output(traces):
    folder = traces.parent / "report"
    options = FindOptions("refused", 4, num_permutations=99, num_bootstraps=20)
    path = report.write_report(find([traces], options), [traces], folder, str(traces.parent / "model"))
    assert path == folder / "report.html"
    return folder


def test_a_trace_does_not_decide_which_folder_is_read(traces, tmp_path):
    """The manifest names the folder of a tokenizer; it is a stranger's, perhaps, and the folder is the user's."""
    options = FindOptions("refused", 4, num_permutations=99, num_bootstraps=20)
    text = report.write_report(find([traces], options), [traces], tmp_path / "r").read_text(encoding="utf-8")
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


def test_the_page_holds_the_data_that_the_maps_draw(page, traces, plan):
    import base64

    import numpy as np

    data = json.loads(Page(page).scripts[0])
    findings = find([traces], FindOptions("refused", 4, num_permutations=99, num_bootstraps=20))
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


# A visitor that does what a reader does, and writes down what the page shows.
VISITOR = """
<script>
(function () {
  const seen = {ready: document.body.dataset.ready, errors: window.visitorErrors};
  const tip = () => document.getElementById("tip").style.display === "block" ? document.getElementById("tip").textContent : "";
  function point(node, x, y) {
    const box = node.getBoundingClientRect();
    node.dispatchEvent(new MouseEvent("mousemove", {clientX: box.left + x, clientY: box.top + y, bubbles: true}));
    return tip();
  }
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.querySelector("#map canvas");
  const width = canvas.width / data.numExperts, height = canvas.height / data.layers.length;
  const [row, expert] = data.top[0];
  seen.rings = document.querySelectorAll("#map circle.ring").length;
  seen.tip = point(canvas, (expert + 0.5) * width, (row + 0.5) * height);
  seen.color = Array.from(canvas.getContext("2d").getImageData((expert + 0.5) * width, (row + 0.5) * height, 1, 1).data);
  document.getElementById("map-choice").value = "others";
  document.getElementById("map-choice").dispatchEvent(new Event("change"));
  seen.legend = document.getElementById("map-legend").textContent;
  const shape = document.querySelector("#plane").children[5];
  const plot = document.querySelector("#plane");
  const box = shape.getBoundingClientRect(), plane = plot.getBoundingClientRect();
  seen.prompt = point(plot, box.left + box.width / 2 - plane.left, box.top + box.height / 2 - plane.top);
  seen.shapes = document.querySelectorAll("#plane > *").length;
  const chips = document.querySelectorAll("#tokens button");
  chips[1].click();
  seen.chips = chips.length;
  seen.chosen = document.querySelectorAll("#tokens button.on").length + chips[1].className;
  const token = document.querySelector("#token-map canvas");
  let selected = 0;
  for (let e = 0; e < data.numExperts; e++)
    if (token.getContext("2d").getImageData((e + 0.5) * width, 0.5 * height, 1, 1).data[0] < 128) selected += 1;
  seen.selected = selected;
  seen.tokenTip = point(token, 1, 1);
  seen.wide = document.documentElement.scrollWidth;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.appendChild(out);
})();
</script>
"""


def visit(page, folder):
    """What the visitor saw of a page, opened from a file without a network."""
    errors = "<script>window.visitorErrors = []; window.onerror = (m) => window.visitorErrors.push(String(m));</script>"
    path = folder / "visited.html"
    text = page.replace("<head>", "<head>" + errors, 1).replace("</body>", VISITOR + "</body>")
    path.write_text(text, encoding="utf-8")
    command = [
        chromium_path(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1000",
    ]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=5000",
    ]
    result = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stderr[-2000:]
    import html

    return json.loads(html.unescape(found[1]))


@pytest.mark.slow
def test_a_browser_draws_it_and_hovering_shows_numbers(page, plan, tmp_path):
    seen = visit(page, tmp_path)
    data = json.loads(Page(page).scripts[0])
    assert seen["ready"] == "yes" and seen["errors"] == []
    assert seen["rings"] == 4
    layer, expert = data["layers"][data["top"][0][0]], data["top"][0][1]
    assert seen["tip"].startswith(f"layer {layer}, expert {expert}  (rank 1)\npaper: ")
    assert seen["color"][0] > seen["color"][2] + 80, "the top expert is orange"
    assert "tokens per prompt" in seen["legend"]
    assert re.match(r"(REFUSED|ALIGNED|REASONED)\nWhat happened 199\d .*\?\n→ <think>", seen["prompt"])
    assert seen["shapes"] == 64 + 1
    assert seen["chips"] == len(data["examples"][0]["tokens"]) and seen["chosen"].startswith("1")
    assert seen["selected"] == plan.top_k
    assert seen["tokenTip"].startswith("layer 3, expert 0\n")
    assert seen["wide"] <= 1300


@pytest.mark.slow
def test_a_map_of_the_size_of_r1_fits_and_can_be_pointed_at(tmp_path):
    plan = synthetic.Plan(num_layers=58, num_experts=256, top_k=8, times=("1990", "1991", "1992", "1993"))
    write_traces(tmp_path / "t", synthetic.manifest(plan), synthetic.records(plan))
    options = FindOptions("refused", 10, num_permutations=99, num_bootstraps=10)
    path = report.write_report(find([tmp_path / "t"], options), [tmp_path / "t"], tmp_path / "r")
    seen = visit(path.read_text(encoding="utf-8"), tmp_path)
    assert seen["errors"] == [] and seen["rings"] == 10 and "(rank 1)" in seen["tip"]
    assert seen["selected"] == 8 and seen["wide"] <= 1300
    assert path.stat().st_size < 2_000_000
