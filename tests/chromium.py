"""Headless Chromium driven as a reader would: keys, clicks, window sizes, pictures. Over a pipe, so that no port is opened.

with browser() as chromium:
    page = chromium.open(path.as_uri(), width=1366, height=768)
    page.click("#map")
    page.press("ArrowRight")
    assert page.text("#readout").startswith("layer 3, expert 1")
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
# key -> (code, Windows' number of the key), as the protocol wants them for keys that write nothing.
KEYS = {
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowUp": ("ArrowUp", 38),
    "ArrowRight": ("ArrowRight", 39),
    "ArrowDown": ("ArrowDown", 40),
    "PageUp": ("PageUp", 33),
    "PageDown": ("PageDown", 34),
    "End": ("End", 35),
    "Home": ("Home", 36),
    "Tab": ("Tab", 9),
    "Escape": ("Escape", 27),
    "Backspace": ("Backspace", 8),
    "Enter": ("Enter", 13),
}
MODIFIERS = {"alt": 1, "control": 2, "meta": 4, "shift": 8}
# Of the pipe's two ends in the browser; numbers that the protocol fixes.
READS_FROM, WRITES_TO = 3, 4
ANSWER_SECONDS = 60.0


def chromium_path() -> str:
    """The path of an installed Chromium or Chrome; the test fails without one rather than pass unseen."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.fail("no Chromium is installed: the slow tests look at pages in one (Debian: apt-get install chromium)")


class Browser:
    """A running browser; `events` are what it told unasked, with the session that each is of."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.number, self.rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to a call of the protocol; an error of the browser fails the test."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            answer = self._next(until, method)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self, until: float, method: str) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{method}: no answer in {ANSWER_SECONDS:.0f} s"
            part = os.read(self.reading, 1 << 20)
            assert part, f"{method}: the browser has ended"
            self.rest += part
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def open(self, address: str, *, width: int = 1366, height: int = 768, script: bool = True) -> "Page":
        """A page in a window of that size, when it has loaded; `script=False` runs none of its scripts."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        if not script:
            page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.call("Page.navigate", url=address)
        page.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


class Page:
    """One page of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A call of the protocol about this page."""
        return self.browser.call(method, self.session, **parameters)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to, as JSON; one that throws fails the test."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        """The expression's value as soon as it is true."""
        until = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"not true within {seconds:g} s: {expression}"
            time.sleep(0.02)
        return found

    def text(self, selector: str) -> str:
        """The text of the first element that fits, as it is shown."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def errors(self) -> list[str]:
        """What went wrong in the page so far: exceptions, and what the browser refused or could not load."""
        self.value("0")  # so that all events so far have been read
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                found.append(str(details.get("exception", {}).get("description", details["text"])))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, in pixels of the page."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def press(self, key: str, *modifiers: str, times: int = 1) -> None:
        """Press and let go of a key, by its name (`ArrowLeft`) or what it writes (`+`)."""
        code, number = KEYS.get(key, ("", ord(key.upper()) if len(key) == 1 else 0))
        held = sum(MODIFIERS[name] for name in modifiers)
        written = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": held}
        for _ in range(times):
            kind = {"type": "keyDown", "text": written} if written and not held & 6 else {"type": "rawKeyDown"}
            self.call("Input.dispatchKeyEvent", **about, **kind)
            self.call("Input.dispatchKeyEvent", **about, type="keyUp")

    def type(self, text: str) -> None:
        """Press the keys of a text one after the other."""
        for character in text:
            self.press(character)

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is in the window, after scrolling to it: x, y, width, height."""
        return self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView({{block: 'center',"
            " behavior: 'instant'}); const box = one.getBoundingClientRect();"
            " return {x: box.x, y: box.y, width: box.width, height: box.height}; })()"
        )

    def click(self, selector: str, at: tuple[float, float] | None = None, times: int = 1) -> None:
        """Click into the middle of an element, or `at` so many pixels from its left and top."""
        x, y = self.point(selector, at)
        for kind in ("mousePressed", "mouseReleased") * times:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=times)

    def point(self, selector: str, at: tuple[float, float] | None = None) -> tuple[float, float]:
        """Move the mouse over an element; returns where it then is in the window."""
        box = self.box(selector)
        x, y = (box["width"] / 2, box["height"] / 2) if at is None else at
        x, y = x + box["x"], y + box["y"]
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """Write what the window shows, or the `whole` page, as PNG; returns the path."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shown["data"]))
        return path


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that reaches nothing but this machine, ended with the block."""
    # Numbers far from the two that the browser wants, so that handing over one does not close the other.
    low = [*os.pipe(), *os.pipe()]
    theirs_in, ours_out, ours_in, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low)
    for end in low:
        os.close(end)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        given = f'exec "$@" {READS_FROM}<&{theirs_in} {WRITES_TO}>&{theirs_out}'
        resolver = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command = [chromium_path(), *FLAGS, resolver, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        process = subprocess.Popen(
            ["bash", "-c", given, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        chromium = Browser(ours_in, ours_out)
        try:
            yield chromium
            chromium.call("Browser.close")
        finally:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours_in)
            os.close(ours_out)
