"""The page of `mote-eval ask` as a reader uses it, and the whole command as a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chromium import Browser, Page

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def running(talk: Path, *words: object) -> Iterator[str]:
    """The address of `mote-eval ask` with these words, ended by Ctrl-C; what it says on stderr goes to `talk`."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eval.cli", "ask", *map(str, words)]
    with talk.open("w") as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), talk.read_text()[-2000:]
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        assert talk.read_text().endswith("ended\n")
    finally:
        process.kill()
        process.wait()


def opened(chromium: Browser, address: str, **window: int) -> Page:
    """The page, ready."""
    page = chromium.open(address, **window)
    page.wait_for("document.documentElement.dataset.ready === 'yes'")
    return page


def ask(page: Page, prompt: str, seconds: float = 20) -> None:
    """Type a question over the last one, and wait for its end."""
    before = page.value("document.querySelectorAll('article').length")
    put(page, prompt)
    page.wait_for(f"document.querySelectorAll('article').length === {before + 1}")
    page.wait_for("!document.querySelector('article button')", seconds)


def put(page: Page, prompt: str) -> None:
    """Type a question over the last one, and send it."""
    page.click("#prompt")
    page.press("a", "control")
    # Control+A selects by what the browser is told to do with it, not by the key, on some systems.
    page.value("document.querySelector('#prompt').select()")
    page.type(prompt)
    page.press("Enter", "control")


def answers(page: Page) -> list[str]:
    """What the newest question's two sides wrote, without the signs for line ends in marks."""
    found = "[...document.querySelector('article').querySelectorAll('.answer')].map((one) => one.textContent)"
    return [text.replace("\u21b5\n", "\n") for text in page.value(found)]


def marked_prompt(page: Page) -> str:
    """The marked part of the newest question's prompt."""
    return "".join(
        page.value(
            "[...document.querySelector('article').querySelectorAll('.prompt mark')].map((one) => one.textContent)"
        )
    )


def marked_shares(page: Page) -> list[tuple[int, int]]:
    """(marked, all) tokens of the newest question's two answers."""
    found = page.value(
        "[...document.querySelector('article').querySelectorAll('.count')].map((one) =>"
        " one.textContent.match(/^(\\d+) of (\\d+)/).slice(1).map(Number))"
    )
    return [tuple(pair) for pair in found]
