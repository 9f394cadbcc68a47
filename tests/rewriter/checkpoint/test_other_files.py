"""Which other files come along: what serving needs does; other weights, training state and scripts do not."""

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints import INDEX, shard_name, tree_state, write_set
from commands import Command

from rewriter.checkpoint.other_files import companion_files

TAKEN = [
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "modeling_custom.py", "layers/experts.py", "layers/router.py", "tokenization_custom.py",
    "chat_template.jinja", "LICENSE", "preprocessor_config.json",
    "figures/plot.png", "inference/configs/a.json", "merges.txt",
]  # fmt: skip
LEFT = [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model-extra.safetensors", "consolidated.00.pth", "model.gguf",
    "tf_model.h5", "flax_model.msgpack", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json",
    "training_args.bin", "onnx/model.onnx", "events.out.tfevents.1", "latest", "zero_to_fp32.py",
    "train.py", "data/prepare.py", "run.sh", "explore.ipynb", "router.py",
]  # fmt: skip
LEFT_FOLDERS = ["global_step100", "checkpoint-10", "runs", "wandb"]
# What configs name, and what that imports from beside itself.
CODE = {
    "modeling_custom.py": "import train\nfrom .layers.experts import (\n    Experts,\n)\n",
    "layers/experts.py": "from . import router\nfrom .modeling_custom import missing\n",
    "tokenizer_config.json": json.dumps(
        {"auto_map": {"AutoTokenizer": ["tokenization_custom.Tokenizer", None, "org/x--train.T"]}}
    ),
}
HIDDEN = [".gitattributes", ".cache/huggingface/x", "__pycache__/modeling_custom.pyc"]


def fill(folder: Path) -> None:
    """Put all of the above into a folder."""
    for name in [*TAKEN, *LEFT, *HIDDEN, *(f"{name}/config.json" for name in LEFT_FOLDERS)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for name, text in CODE.items():
        (folder / name).write_text(text)


def test_other_files(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    fill(base)
    out = tmp_path / "out"
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--json")
    assert outcome.code == 0, outcome.stderr
    for name in TAKEN:
        assert (out / name).read_text() == CODE.get(name, name) and not (out / name).is_symlink()
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {*TAKEN, INDEX, "config.json", "README.md", *(shard_name(number) for number in range(4))}
    assert set(json.loads(outcome.stdout)["files_left_out"]) == {*LEFT, *LEFT_FOLDERS}


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.txt").write_text("not part of the model")
    model = tmp_path / "model"
    model.mkdir()
    (model / "folder").symlink_to(tmp_path / "elsewhere")
    assert companion_files(model, set()) == ([], [Path("folder")])


@pytest.mark.parametrize("name", ["merges.txt", "config.json", "README.md", "sub/vocab.txt", shard_name(0)])
def test_link_out_of_the_model_is_refused_by_name(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, name: str
) -> None:
    """A downloaded model can have a link to the Hub token of whoever downloads it."""
    secret = tmp_path / "elsewhere" / Path(name).name
    secret.parent.mkdir()
    (base / name).parent.mkdir(exist_ok=True)
    if (base / name).exists():
        (base / name).rename(secret)
    else:
        secret.write_text("hf_secret")
    (base / name).symlink_to(secret)
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    assert f"{base / name}: is a link to {secret}" in sentence and not (tmp_path / "out").exists()


def test_link_within_the_model_is_followed(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    (base / "vocab.txt").symlink_to("tokenizer.json")
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()


def test_variant_of_links_is_a_base_too(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    """The unchanged shards of `--link symlink` are links to the base's; no others are followed."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", first, "--link", "symlink").code == 0
    assert mote_verify(first, "--base", base).code == 0
    more = write_set(tmp_path / "more.json", [(2, 2)])
    assert mote_rewrite("--model", first, "--suppress", more, "-o", second).code == 0
    link = next(path for path in first.iterdir() if path.is_symlink())
    (tmp_path / "other").mkdir()
    shutil.copy(link, tmp_path / "other" / link.name)
    link.unlink()
    link.symlink_to(tmp_path / "other" / link.name)
    assert "is a link to" in mote_verify(first, "--base", base).error


def test_copied_files_are_the_variant_s_own(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    """People edit chat templates; such an edit must not reach the base, whatever the shards are linked by."""
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "hardlink").code == 0
    before = tree_state(base)
    for path in out.iterdir():
        if path.suffix != ".safetensors":
            path.write_text("edited")
    for name in (shard_name(0), shard_name(1), shard_name(2), shard_name(3)):
        if (out / name).stat().st_nlink == 1:  # an edited shard
            (out / name).write_text("edited")
    assert tree_state(base) == before


@pytest.mark.parametrize("name", ["config.json", "README.md", INDEX, "tokenizer.json"])
def test_base_s_files_that_are_hard_links_are_never_written_through(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, name: str
) -> None:
    """As in a store that links equal files: whatever else has a link to a file of the base keeps its bytes."""
    os.link(base / name, tmp_path / "kept")
    for number in range(4):
        os.link(base / shard_name(number), tmp_path / f"kept-{number}")
    contents = {path.name: path.read_bytes() for path in tmp_path.glob("kept*")}
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("kept*")} == contents


def test_broken_link(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    (base / "vocab.txt").symlink_to("nowhere")
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    assert f"{base / 'vocab.txt'}: is a broken link" in sentence and not (tmp_path / "out").exists()


def test_pipe_among_the_files(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    """Reading one would wait forever."""
    os.mkfifo(base / "pipe")
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    assert f"{base / 'pipe'}: is not a regular file" in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", ["auto", "hardlink", "symlink", "copy"])
def test_hub_cache_snapshot(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command, link: str
) -> None:
    """A snapshot's entries are links to blobs: linked shards are the blobs themselves, and no blob is ever written."""
    model = tmp_path / "hub" / "models--org--tiny"
    snapshot = model / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, path in enumerate(sorted(base.iterdir())):
        shutil.copy(path, model / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    before, out = tree_state(model), tmp_path / "out"
    assert mote_rewrite("--model", snapshot, "--suppress", refusal, "-o", out, "--link", link).code == 0
    assert tree_state(model) == before
    block = json.loads((out / "config.json").read_text())["mote"]
    assert (block["base_model"], block["base_revision"]) == ("org/tiny", "0123456789" * 4)
    for path in out.iterdir():
        if link == "symlink" and path.is_symlink():
            assert path.readlink().parent == model / "blobs" and path.readlink().is_absolute()
        else:
            assert not path.is_symlink()
    assert mote_verify(out, "--base", snapshot, "--full").code == 0


def test_card_without_a_base_card(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    (base / "README.md").unlink()
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert "Not measured" in (tmp_path / "out" / "README.md").read_text()


def test_card_in_another_encoding(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    (base / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe")
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


def test_card_carries_the_licence_over(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "conversational" in card and "reroute" in card
    assert "mote" not in (base / "README.md").read_text()
