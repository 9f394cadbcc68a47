"""Two folders with different content have different identities, also where name, config and headers are the same."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rewriter.checkpoint import identity
from rewriter.checkpoint.identity import content_sha256
from rewriter.errors import CheckpointError


def write_model(folder, bias=0.0, weight=0.0, num_values=64):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    tensors = {
        "gate.bias": np.full(16, bias, np.float32),
        "down.weight": np.full((num_values, 1024), weight, np.float32),
        # Behind the bias, which would else lie in the block that is read of every file's end.
        "up.weight": np.full((num_values, 1024), weight, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_same_content_elsewhere_is_the_same(tmp_path):
    first, second = write_model(tmp_path / "a" / "model"), write_model(tmp_path / "b" / "model")
    (second / "README.md").write_text("A card changes no answer.")
    assert content_sha256(first) == content_sha256(second)


@pytest.mark.parametrize("whole_bytes", [identity.WHOLE_BYTES, 0], ids=["whole", "sampled"])
def test_other_weights_under_one_name_config_and_header_are_told_apart(tmp_path, monkeypatch, whole_bytes):
    monkeypatch.setattr(identity, "WHOLE_BYTES", whole_bytes)
    folders = [
        write_model(tmp_path / "base" / "model"),
        write_model(tmp_path / "biased" / "model", bias=1.0),
        write_model(tmp_path / "tuned" / "model", weight=1.0),
    ]
    assert len({(folder / "config.json").read_bytes() for folder in folders}) == 1
    assert len({content_sha256(folder) for folder in folders}) == 3


def test_one_changed_bias_of_a_large_shard_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE_BYTES", 0)
    folder = write_model(tmp_path / "model", num_values=4096)
    before = content_sha256(folder)
    shard = folder / "model.safetensors"
    content = bytearray(shard.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little") + header["gate.bias"]["data_offsets"][0]
    content[start + 20] ^= 1
    shard.write_bytes(content)
    assert content_sha256(folder) != before


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja", "model-2.bin"])
def test_what_else_decides_an_answer_counts(tmp_path, name):
    folder = write_model(tmp_path / "model")
    before = content_sha256(folder)
    (folder / name).write_text("{}")
    assert content_sha256(folder) != before


def test_a_slow_tokenizers_files_count_where_they_are_what_is_read(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "tiktoken.model").write_text("a")
    alone = content_sha256(folder)
    (folder / "tiktoken.model").write_text("b")
    assert content_sha256(folder) != alone
    (folder / "tokenizer.json").write_text("{}")
    beside = content_sha256(folder)
    (folder / "tiktoken.model").write_text("c")
    assert content_sha256(folder) == beside


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        content_sha256(tmp_path / "none")
