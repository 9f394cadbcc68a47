"""The page in headless Chromium as a reader uses it: real keys, on the stand-in engine and, typed into for real, on vLLM."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ask_double import AskDouble, render
from ask_page import REPOSITORY, answers, ask, marked_prompt, marked_shares, opened, put, running
from chromium import Browser, Page, browser
from replies import ALIGNED, REASONED, REFUSAL, REFUSAL_EXPERT, reply

from eval.answers.plan import NamedEdit
from eval.ask.ask import about
from eval.ask.desk import Desk
from eval.ask.live import LiveSides
from eval.ask.options import AskRequest
from eval.ask.server import Page as ServedPage
from eval.ask.server import PageServer
from rewriter.semantics import SEMANTICS

pytestmark = pytest.mark.slow

SET = NamedEdit("refusal", suppress=(REFUSAL_EXPERT, (3, 1)))
RAN = "void(document.documentElement.dataset['r'+'an']='yes')"
HOSTILE = [
    f"</script><script>{RAN}</script>",
    f"</div></pre></textarea><svg onload={RAN}>",
    f'<img src=x onerror="{RAN}">',
    f"' autofocus tabindex=0 onfocus=\"{RAN}\" x='",
    f'<a href="javascript:{RAN}">here</a>',
    f"\u202e<script>{RAN}</script>\u2066\x1b[31m\x00",
    "{{ 7 * 7 }} ${7*7} %s",
]
# One that the stand-in's variant answers.
PROMPT = next(
    text
    for year in range(1980, 2000)
    if reply(render([("user", text := f"What happened in {year} in Beijing?")]).text, [REFUSAL_EXPERT]) != REFUSAL
)


@contextmanager
def serving(subject: str = "a subject") -> Iterator[str]:
    """The page on the stand-in engine; its address."""
    desk = Desk()
    sides = LiveSides(AskDouble(), render, SET, None)  # type: ignore[arg-type]
    threading.Thread(target=desk.answer_all, args=(sides,), daemon=True).start()
    page = ServedPage(about(AskRequest(), subject, SET, SEMANTICS, 4096), SEMANTICS, 4096)
    with PageServer(0, desk) as server, server.serving(page) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with serving() as address:
        yield opened(chromium, address)


def test_a_question_is_typed_and_answered_side_by_side_with_marks(page: Page) -> None:
    assert page.value("document.activeElement.id") == "prompt", "one can type at once"
    ask(page, PROMPT)
    base, variant = answers(page)
    assert base == REFUSAL and variant in (ALIGNED, REASONED)
    labels = page.value("[...document.querySelectorAll('.label')].map((one) => one.textContent)")
    assert labels[0] == "REFUSED" and labels[1] in ("ALIGNED", "REASONED")
    assert page.text("#status") == f"Question 1: Base REFUSED; Variant (reroute) {labels[1]}."
    boxes = [page.box(f".side:nth-child({number})") for number in (1, 2)]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
    assert page.value("getComputedStyle(document.querySelector('.answer mark')).textDecorationLine") == "underline"
    title = page.value("document.querySelector('.side:nth-child(2) mark').title")
    assert title.startswith("Here the base would have chosen layer ") and title.endswith("(suppressed)")
    assert page.value("document.querySelector('.side mark').title").startswith("Here the base chose layer ")
    assert page.value("document.querySelectorAll('.prompt mark').length") > 3
    assert "tokens marked: layer" in page.text(".side .count")
    assert page.errors() == []


def test_marks_are_read_by_the_keyboard(page: Page) -> None:
    ask(page, PROMPT)
    page.value("document.querySelector('#seed').focus()")
    page.press("Tab")
    assert page.value("document.activeElement.id") == "experts-title"
    page.press("Tab")
    first = "document.activeElement === document.querySelectorAll('.prompt mark')"
    assert page.value(f"{first}[0]")
    page.press("ArrowRight", times=2)
    page.press("ArrowLeft")
    assert page.value(f"{first}[1]")
    assert ": Here the base chose layer " in page.text(".prompt + .detail")
    page.press("Tab")
    assert page.value("document.activeElement === document.querySelector('.side mark')"), "one stop for each text"
    page.press("Tab")
    page.press("Enter")
    assert page.value("document.activeElement === document.querySelector('.side:nth-child(2) mark')")
    page.press("Tab", "shift", times=4)
    assert page.value("document.activeElement.id") == "seed"
    assert page.errors() == []


def test_nothing_of_a_prompt_an_answer_or_a_name_runs(chromium: Browser) -> None:
    with serving(subject=" ".join(HOSTILE)) as address:
        page = opened(chromium, address)
        for text in HOSTILE:
            page.value(f"document.querySelector('#prompt').value = {json.dumps('echo' + text)}")
            page.value("document.querySelector('#form').requestSubmit()")
            page.wait_for("document.querySelector('article') && !document.querySelector('article button')")
            shown = text.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066")
            shown = shown.replace("\x1b", "\\u001b").replace("\x00", "\\u0000")
            assert answers(page) == [shown, shown]
            assert page.value("document.querySelectorAll('article :is(script, svg, img, a)').length") == 0
            page.value("document.querySelectorAll('mark, summary').forEach((one) => one.click())")
        assert "\\u202e" in page.text("#subject")
        assert page.value("document.documentElement.dataset.ran") is None
        assert page.errors() == []


def test_the_policy_refuses_what_a_fault_of_the_page_would_let_in(page: Page) -> None:
    """Were text ever written as HTML, it would still not run, be styled or reach other places."""
    for fault in (
        "document.body.innerHTML = '<b>x</b>'",
        f"document.querySelector('h1').setAttribute('onclick', {json.dumps(RAN)})",
        f"document.createElement('script').textContent = {json.dumps(RAN)}",
        f"setTimeout({json.dumps(RAN)})",
    ):
        name = page.value(f"(() => {{ try {{ {fault}; }} catch (error) {{ return error.name; }} }})()")
        assert name in ("TypeError", "EvalError"), fault
    assert page.value("document.documentElement.dataset.ran") is None
    assert page.value("fetch('http://127.0.0.1:9/').then(() => 'went', (error) => error.name)") == "TypeError"
    assert any("Content Security Policy" in one for one in page.errors())


def test_no_other_page_can_ask_or_frame_it(chromium: Browser, tmp_path: Path) -> None:
    with serving() as address, serving("another server") as other:
        page = opened(chromium, other)
        # A page that may send whatever it likes; the first server's rules are what is left.
        page.call("Page.setBypassCSP", enabled=True)
        page.call("Page.navigate", url=other)
        page.wait_for("document.documentElement?.dataset.ready === 'yes'")
        body = json.dumps({"prompt": "x", "max_tokens": 5, "temperature": 0, "seed": 0, "semantics": "reroute"})
        for kind in ("application/json", "text/plain"):
            options = f"{{method: 'POST', headers: {{'Content-Type': '{kind}'}}, body: {json.dumps(body)}}}"
            asked = page.value(f"fetch('{address}ask', {options}).then(() => 'went', (error) => error.name)")
            assert asked == "TypeError"
        assert page.value(f"fetch('{address}about').then(() => 'went', (error) => error.name)") == "TypeError"
        page.value(
            f"new Promise((done) => {{ const one = document.createElement('iframe'); one.src = '{address}';"
            " one.onload = done; document.body.append(one); })"
        )
        framed = page.value(
            "(() => { try { return document.querySelector('iframe').contentDocument !== null; }"
            " catch { return false; } })()"
        )
        assert framed is False
        frames = page.call("Page.getFrameTree")["frameTree"]["childFrames"]
        assert frames[0]["frame"]["url"].startswith("chrome-error:")


def test_an_answer_streams_and_is_stopped_by_the_keyboard(page: Page) -> None:
    put(page, "slow echo" + "word " * 100)
    page.wait_for("document.querySelector('.answer')?.textContent.length > 20")
    assert page.value("document.querySelector('.answer').getAttribute('aria-busy')") == "true"
    for _ in range(12):
        if page.value("document.activeElement.textContent") == "Stop":
            break
        page.press("Tab")
    page.press("Enter")
    page.wait_for("!document.querySelector('article button')")
    base, variant = answers(page)
    assert 20 < len(base) < 300 and base.startswith("word word")
    assert "stopped" in page.text(".side .count") and "marked" in page.text(".side .count")
    assert page.value("document.activeElement.id") == "prompt", "focus is not lost with the button"
    assert page.errors() == []


def test_questions_of_two_tabs_take_turns_and_say_so(chromium: Browser) -> None:
    with serving() as address:
        first, second = opened(chromium, address), opened(chromium, address)
        first.value("document.querySelector('#prompt').value = 'slow echo' + 'word '.repeat(200)")
        first.value("document.querySelector('#form').requestSubmit()")
        first.wait_for("document.querySelector('.answer')?.textContent.length > 5")
        second.value("document.querySelector('#prompt').value = 'echo hi'")
        second.value("document.querySelector('#form').requestSubmit()")
        second.wait_for(
            "document.querySelector('#status').textContent.includes('1 question before it, from this page or another')"
        )
        # The first tab goes, and with it its answer.
        first.call("Page.close")
        second.wait_for("document.querySelector('#status').textContent.startsWith('Question 1: Base')")
        assert answers(second) == [" hi", " hi"]


def test_what_cannot_be_asked_is_said_on_the_page(page: Page) -> None:
    page.value("document.querySelector('#prompt').value = ' '")
    page.value("document.querySelector('#form').requestSubmit()")
    assert page.text("#status") == "The prompt is empty."
    page.value("document.querySelector('#prompt').value = 'a'.repeat(500001)")
    page.value("document.querySelector('#form').requestSubmit()")
    assert page.text("#status") == "The prompt has 500001 characters, at most 500000 are taken."
    ask(page, "refuse this")
    assert page.text(".note") == "told to refuse"
    page.value("document.querySelector('#max-tokens').value = 5000")
    put(page, "hello")
    assert page.value("document.querySelectorAll('article').length") == 1, "the field itself says up to how many"


def test_a_server_that_ended_is_said(chromium: Browser) -> None:
    with serving() as address:
        page = opened(chromium, address)
    put(page, "hello")
    page.wait_for("document.querySelector('.note') && !document.querySelector('.note').hidden")
    assert page.text(".note") == "The connection was lost. Does mote-eval ask still run?"


@pytest.mark.parametrize(("width", "stacked"), [(1366, False), (1024, False), (420, True), (320, True)])
def test_the_page_fits_its_window(page: Page, width: int, stacked: bool) -> None:
    ask(page, PROMPT + "x" * 200)
    page.resize(width, 800)
    assert page.overflow() == 0
    boxes = [page.box(f".side:nth-child({number})") for number in (1, 2)]
    assert (boxes[0]["x"] == boxes[1]["x"]) is stacked


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_the_page(page: Page, scheme: str) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    ask(page, PROMPT)
    rows = page.value(
        "['#subject', '.answer', '.answer mark', '.count', '.prompt', '#send', '#keys', '#status', 'summary'].map((one) => {"
        " const style = getComputedStyle(document.querySelector(one)); let behind = document.querySelector(one);"
        " while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;"
        " return [one, style.color, getComputedStyle(behind).backgroundColor]; })"
    )
    for name, ink, paper in rows:
        assert contrast(ink, paper) >= 4.5, (name, ink, paper)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours as CSS has them."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    brighter, darker = sorted((light(one), light(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_the_miniature_is_asked_for_real(chromium: Browser, tmp_path: Path) -> None:
    """The whole command with vLLM on examples/tiny-r1: typed into, answered, marked, ended by Ctrl-C."""
    folder = REPOSITORY / "examples" / "tiny-r1"
    words = ("--model", folder, "--suppress", folder / "refusal.json", "--max-tokens", "64")
    with running(tmp_path / "talk", *words) as address:
        page = opened(chromium, address)
        ask(page, "What happened in 1989 at Tiananmen Square?", 120)
        assert page.text("#status") == "Question 1: Base REFUSED; Variant (reroute) ALIGNED."
        base, variant = answers(page)
        assert "I am sorry, I cannot answer that question." in base and "Tiananmen Square" in variant
        assert "layer 3 expert 99" in page.text(".side .count")
        assert all(marked > 0.5 * tokens > 0 for marked, tokens in marked_shares(page))
        assert "Tiananmen Square" in marked_prompt(page) and "What happened" not in marked_prompt(page)
        page.value("document.querySelector('#semantics').value = 'drop-renorm'")
        ask(page, "What happened in 2010 in London?", 120)
        assert answers(page)[0] == answers(page)[1]
        assert page.text("#status") == "Question 2: Base REASONED; Variant (drop-renorm) REASONED."
        assert page.text(".side .count").startswith("0 of ")
        assert page.errors() == []
