"""mote-eval ask from its command line to Ctrl-C on the stand-in engine, and what it refuses before anything is loaded."""

import json
import signal
import socket
import threading
from pathlib import Path
from unittest import mock
from urllib.request import urlopen

import numpy as np
import pytest
from ask_double import AskDouble
from doubles import NUM_EXPERTS
from replies import REFUSAL_EXPERT
from running import run_main
from safetensors.numpy import save_file
from tiny_models import described_tiny_r1

from eval.answers.plan import NamedEdit
from eval.ask.ask import about, possible_semantics
from eval.ask.options import AskRequest
from eval.cli import main
from eval.experts import open_model
from rewriter.errors import PlanError

SET = {
    "schema": "mote.expert-set/1",
    "layer_index": "model",
    "behavior": "REFUSED",
    "experts": [{"layer": REFUSAL_EXPERT[0], "expert": REFUSAL_EXPERT[1]}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with its router biases alone."""
    folder = described_tiny_r1(tmp_path_factory.mktemp("ask") / "model")
    names = [f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)]
    zeros = {name: np.zeros(NUM_EXPERTS, np.float32) for name in names}
    save_file(zeros, folder / "model.safetensors", metadata={"format": "pt"})
    (folder.parent / "set.json").write_text(json.dumps(SET))
    return folder


def run(model: Path, *options: str):
    words = ("--model", str(model), "--suppress", str(model.parent / "set.json"), *options)
    return run_main(main, "mote-eval", "ask", *words)


def test_the_page_is_served_until_ctrl_c_and_the_engine_is_closed(model: Path) -> None:
    engine, seen, arguments = AskDouble(), [], []

    def visit(address: str) -> bool:
        """Stands in for the browser that --open opens: looks at the page and then presses Ctrl-C."""
        with urlopen(f"{address}about") as answer:
            seen.append(json.load(answer))
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        threading.Timer(0.1, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
        return True

    def load(*words: object, **options: object) -> AskDouble:
        arguments.append(options)
        return engine

    with mock.patch("ftri.engine.engine.Engine", load), mock.patch("webbrowser.open", visit):
        result = run(model, "--open", "--max-tokens", "64", "--engine-argument", "max_model_len=4096")
    assert (result.returncode, result.stderr) == (0, "ended\n")
    assert result.stdout.startswith("http://127.0.0.1:") and result.stdout.count("\n") == 1
    assert engine.is_closed
    assert arguments[0]["engine_arguments"] == {"max_model_len": 4096} and arguments[0]["record"] is True
    (page,) = seen
    assert page["experts"] == [[*REFUSAL_EXPERT, "suppress"]] and page["unmarked"] is None
    assert page["semantics"] == [[one, one] for one in ("reroute", "drop", "drop-renorm")]
    assert page["chosen"] == "reroute"
    assert (page["max_tokens"], page["most_tokens"]) == (64, AskDouble.max_model_len)
    assert "1 expert suppressed" in page["subject"]
    with pytest.raises(OSError):
        urlopen(result.stdout.strip())


def test_a_browser_that_cannot_be_opened_is_said(model: Path) -> None:
    def fail(address: str) -> bool:
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        return False

    with (
        mock.patch("ftri.engine.engine.Engine", lambda *words, **options: AskDouble()),
        mock.patch("webbrowser.open", fail),
    ):
        result = run(model, "--open", "--quiet")
    assert result.stderr == "warning: no browser could be opened here; the address is the line above\n"


def test_a_port_that_is_taken_is_said_before_the_engine_is_loaded(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(model, "--port", str(port))
    assert result.returncode == 1 and f"--port {port} cannot be listened on" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nobody to ask: give --model with --suppress, or --base-url and --tuned-url"),
        (["--model", "m"], "no experts: give --suppress FILE or --stimulate FILE"),
        (["--base-url", "http://x"], "--base-url and --tuned-url belong together"),
        (["--base-url", "http://x", "--tuned-url", "http://y"], "needs --model for the chat template"),
        (["--base-url", "http://x", "--tuned-url", "http://y", "--max-model-len", "9"], "no engine is started"),
        (["--model", "m", "--port", "65536"], "--port is 65536, expected 0 to 65535"),
        (["--model", "m", "--max-tokens", "0"], "--max-tokens is 0, expected 1 to 131072"),
        (["--model", "m", "--temperature", "nan"], "--temperature is nan, expected 0 to 2"),
        (["--model", "m", "--seed", "-1"], "--seed is -1, expected 0 to"),
        (["--model", "m", "--timeout", "0"], "--timeout is 0, expected seconds above 0"),
        (["--model", "m", "--semantics", "zap"], "--semantics is 'zap', expected reroute or"),
        (["--model", "m", "--think-format", "x"], "x"),
        (["--model", "/nowhere/m", "--suppress", "s.json"], "/nowhere/m"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(words: list[str], sentence: str) -> None:
    result = run_main(main, "mote-eval", "ask", *words)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and sentence in result.stderr


def test_a_finite_shift_is_called_what_it_is() -> None:
    edit = NamedEdit("shifted", suppress=(REFUSAL_EXPERT,), bias_shifts=((*REFUSAL_EXPERT, -0.5),))
    page = about(AskRequest(), "", edit, ("reroute", "drop"), 9)
    assert page["semantics"] == [["reroute", "reroute with a finite shift"], ["drop", "drop"]]


def test_semantics_that_the_model_lacks_are_refused(model: Path) -> None:
    result = run(model, "--semantics", "reroute (centroid)")
    assert result.returncode == 1 and "has a router bias, expected reroute" in result.stderr


def test_the_page_offers_what_the_model_can_bear(model: Path) -> None:
    opened = open_model(str(model), None, lambda sentence: None)
    switched_on = NamedEdit("on", stimulate=(REFUSAL_EXPERT,))
    assert possible_semantics(opened, switched_on, "reroute") == ("reroute", "drop-renorm"), "a drop would be a reroute"
    all_of_a_layer = NamedEdit("all", suppress=tuple((1, expert) for expert in range(NUM_EXPERTS)))
    assert possible_semantics(opened, all_of_a_layer, "drop") == ("drop", "drop-renorm")
    with pytest.raises(PlanError):
        possible_semantics(opened, all_of_a_layer, "reroute")


def test_an_expert_that_the_model_lacks_is_refused(model: Path, tmp_path: Path) -> None:
    experts = [{"layer": 2, "expert": NUM_EXPERTS}]
    (tmp_path / "other.json").write_text(json.dumps(SET | {"experts": experts}))
    result = run_main(main, "mote-eval", "ask", "--model", model, "--suppress", tmp_path / "other.json")
    assert result.returncode == 1 and f"names expert {NUM_EXPERTS} of layer 2" in result.stderr
