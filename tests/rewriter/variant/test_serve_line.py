"""The command that serves a variant: quoted for the shell, and with remote code only where the runtime needs it."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CONFIG, build_checkpoint, write_json
from commands import Command
from gguf_files import write_model

from rewriter.checkpoint.kinds import open_model
from rewriter.push.card import serve_line_for
from rewriter.variant.card import serve_line

HOSTILE = "my model; touch $(x) 'y' \"z\""


def test_folder_with_spaces_and_commands_in_its_name(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = json.loads(mote_rewrite("--model", base, "--suppress", refusal, "-o", HOSTILE, "--json").stdout)
    assert shlex.split(result["serve"]) == ["vllm", "serve", f"./{HOSTILE}"]
    card = (tmp_path / HOSTILE / "README.md").read_text()
    assert result["serve"] in card
    # Published, only the model's name changes.
    assert serve_line_for(f"{result['serve']} --tensor-parallel-size 8", "me/it", "b") == (
        "vllm serve me/it --revision b --tensor-parallel-size 8"
    )
    assert shlex.split(serve_line_for("vllm serve x --served-model-name 'a; b'", "me/it", "main"))[-1] == "a; b"


def test_a_gguf_files_name_is_quoted_too(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.gguf"
    write_model(path)
    assert shlex.split(serve_line("./my model; rm x", open_model(path))) == [
        "llama-server",
        "-m",
        f"./my model; rm x/{path.name}",
    ]


@pytest.mark.parametrize(
    ("model_type", "tokenizer", "needed"),
    [
        ("deepseek_v3", {}, False),  # both transformers and vLLM have its config class
        ("sarvam_moe", {}, True),
        ("deepseek_v3", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}, True),
    ],
)
def test_remote_code_only_where_the_runtime_needs_it(
    tmp_path: Path, model_type: str, tokenizer: dict[str, Any], needed: bool
) -> None:
    base = build_checkpoint(tmp_path / "m")
    write_json(base / "config.json", CONFIG | {"model_type": model_type, "num_experts": 16})
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert ("--trust-remote-code" in serve_line("./x", open_model(base))) is needed
