"""The defaults beneath a user's engine arguments."""

import re
from dataclasses import make_dataclass
from pathlib import Path

import pytest
import vllm
from vllm.platforms import current_platform

from ftri.engine.arguments import (
    capture_arguments,
    check_arguments,
    check_release,
    check_slots_stay,
    choose_arguments,
    choose_capture,
    parse_engine_arguments,
    without_secrets,
)
from ftri.worker.internals import TESTED_RELEASES
from rewriter.errors import InputError

REPOSITORY = Path(__file__).parents[3]
on_cpu = pytest.mark.skipif(not current_platform.is_cpu(), reason="a default for CPU engines")


@on_cpu
@pytest.mark.parametrize("dtype", ["float", "float32"])
def test_float32_asks_for_the_attention_that_takes_it(dtype):
    assert choose_arguments({"dtype": dtype}, "folder")["attention_backend"] == "CPU_MLA"


@on_cpu
@pytest.mark.parametrize("given", [{}, {"dtype": "bfloat16"}, {"dtype": "float32", "attention_config": {}}])
def test_other_engines_keep_vllms_choice(given):
    assert "attention_backend" not in choose_arguments(given, "folder")


def test_what_the_user_gives_wins():
    given = {"dtype": "float32", "attention_backend": "AMX_MLA", "seed": 7}
    assert choose_arguments(given, "folder") == choose_arguments(given, "folder") | given | {"model": "folder"}


@pytest.mark.parametrize("name", ["kv_transfer_config", "kv_offloading_size"])
def test_what_moves_cached_tokens_is_refused_with_the_hook(name):
    """Rows lie by cache slot: keys and values restored into another slot would bring another token's rows."""
    with pytest.raises(InputError, match=f"engine argument {name} moves cached tokens"):
        check_slots_stay({name: 4.0})
    check_slots_stay({name: None, "kv_offloading_backend": "native"})


def test_ids_that_do_not_fit_vllms_own_capture_go_by_the_hook(monkeypatch):
    """256 experts fit a byte, the zero-computation experts behind them do not."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert choose_capture({}, num_experts=256, num_choices=384) == "router_hook"


@pytest.mark.parametrize(
    "raised", [ValueError, TypeError, RuntimeError, OSError, KeyError, NotImplementedError, AssertionError]
)
def test_whatever_vllm_raises_of_its_own_capture_the_hook_is_taken(monkeypatch, raised):
    """An AssertionError or the like was a traceback; of wrong arguments the start of the engine says it in a sentence."""

    asked = []

    def refuse(self):
        asked.append(self)
        raise raised("no")

    monkeypatch.setattr("vllm.EngineArgs.create_engine_config", refuse)
    monkeypatch.setattr("vllm.EngineArgs.__init__", lambda self, **arguments: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(current_platform), "is_cpu", lambda self: False)
        assert choose_capture({}, num_experts=16, num_choices=16) == "router_hook" and asked


def test_every_command_takes_vllms_own_options_and_the_alias():
    words = ["--max-model-len", "4096", "--engine-argument", "dtype=float32", "--engine-argument=enforce_eager=true"]
    expected = {"max_model_len": 4096, "dtype": "float32", "enforce_eager": True}
    assert parse_engine_arguments(words) == parse_engine_arguments(words, "mote-eval") == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--engine-argument", "dtype"], "--engine-argument is 'dtype', expected NAME=VALUE"),
        (["--engine-argument"], "--engine-argument is '', expected NAME=VALUE"),
        (["--engine-argument", "model=other"], "engine argument model is set by MoTE itself"),
        (["--max-model-len", "8", "--engine-argument", "max_model_len=9"], "max_model_len is given twice"),
        (["stray"], "'stray' was not expected: mote-eval takes its inputs by options"),
        (
            ["--supress", "x"],
            "--supress is neither an option of mote-eval nor an engine argument .*did you mean --suppress",
        ),
    ],
)
def test_a_word_that_is_none_is_one_sentence(words, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_engine_arguments(words, "mote-eval", ["--suppress", "--stimulate"])


def test_hostile_words_are_one_short_line(capfd):
    """As tests/test_hostile_words.py for all other words of a command line; these go to vLLM's parser."""
    hostile = f"\x1b[31mred\u202e\r\nerror: all is well\n{'B' * 20_000}"
    for words in ([f"--{hostile}"], ["--dtype", hostile], ["--max-model-len", hostile], ["--engine-argument", hostile]):
        with pytest.raises(InputError) as caught:
            parse_engine_arguments(words, "mote-eval", ["--suppress"])
        assert str(caught.value).isprintable() and len(str(caught.value)) <= 400
    with pytest.raises(InputError, match="is not an engine argument of this vLLM"):
        check_arguments(parse_engine_arguments(["--engine-argument", f"{hostile}=1"]))
    assert capfd.readouterr() == ("", "")


def test_secrets_are_taken_out_of_what_is_written_down():
    given = {
        "hf_token": "hf_word",
        "max_num_batched_tokens": 64,
        "skip_tokenizer_init": True,
        "tokenizer": "https://user:pass@host.test/t",
        "kv_transfer_config": {"auth_token": "inner", "urls": ["http://me:mine@host.test"]},
    }
    assert without_secrets(given) == {
        "hf_token": "<secret>",
        "max_num_batched_tokens": 64,
        "skip_tokenizer_init": True,
        "tokenizer": "https://<secret>@host.test/t",
        "kv_transfer_config": {"auth_token": "<secret>", "urls": ["http://<secret>@host.test"]},
    }
    assert without_secrets({"hf_token": True}) == {"hf_token": True}


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        (
            ["enable_return_routed_experts", "aux_output_config"],
            {"aux_output_config": {"enable_return_routed_experts": True}},
        ),
        (["enable_return_routed_experts"], {"enable_return_routed_experts": True}),
        ([], {}),
    ],
)
def test_vllms_own_capture_is_asked_for_by_the_argument_that_it_has(monkeypatch, fields, asked):
    monkeypatch.setattr(vllm, "EngineArgs", make_dataclass("EngineArgs", fields))
    assert capture_arguments() == asked


@pytest.mark.parametrize("version", ["0.29.1", "0.33.0", "1.30", "dev"])
def test_a_release_that_nothing_was_run_on_is_named(monkeypatch, version):
    monkeypatch.delenv("MOTE_ANY_VLLM", raising=False)
    with pytest.raises(InputError, match=f"vLLM is {version}, expected 0.30, 0.31, 0.32"):
        check_release(version)
    monkeypatch.setenv("MOTE_ANY_VLLM", "1")
    check_release(version)


def test_the_releases_that_are_taken_are_those_that_are_tested():
    """The Makefile runs them, the README has a row for each, pip may install none but them."""
    for release in ("0.30.0", "0.31.0", "0.32.0", "0.32.1.dev3+cpu"):
        check_release(release)
    makefile, readme, project = (
        (REPOSITORY / name).read_text() for name in ("Makefile", "README.md", "pyproject.toml")
    )
    (run,) = re.findall(r"VLLM_RELEASES \?= (.*)", makefile)
    assert {release.rpartition(".")[0] for release in run.split()} == set(TESTED_RELEASES)
    for release in TESTED_RELEASES:
        assert re.search(rf"^\|[^|]*{release}[^|]*\|", readme, re.MULTILINE), release
    allowed = re.findall(r'"vllm(?:-cpu)?[=>]=(\d+\.\d+)', project)
    assert allowed and set(allowed) <= set(TESTED_RELEASES)
