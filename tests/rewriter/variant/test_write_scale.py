"""The longer proofs of writing: filesystems that share blocks, and a checkpoint of DeepSeek-R1's size."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import bias_name, build_checkpoint, shard_of, tree_state, write_set
from commands import Command
from gguf_files import model_tensors, write_split

pytestmark = pytest.mark.slow
IMAGE_BYTES = 1 << 30
FREE_BLOCKS_BYTES = 16 << 20  # what a filesystem may take for its own metadata
MEMORY_LIMIT_BYTES = 120_000_000


@contextmanager
def filesystem(kind: str, folder: Path) -> Iterator[Path]:
    """A new filesystem in an image file, mounted for as long as the test runs.

    A test for which this cannot be done says why; it needs root, mkfs and loop devices.
    """
    make = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}[kind]
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    if os.geteuid() != 0:
        pytest.skip("mounting an image needs root")
    image, mounted = folder / f"{kind}.img", folder / kind
    with image.open("wb") as opened:
        opened.truncate(IMAGE_BYTES)
    subprocess.run([*make, str(image)], check=True, capture_output=True)
    mounted.mkdir()
    tried = subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this machine does not mount {kind} images: {tried.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        image.unlink()


def used_bytes(folder: Path) -> int:
    """What is used of a filesystem, once all is on the disk."""
    os.sync()
    return shutil.disk_usage(folder).used


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_are_shared(kind: str, tmp_path: Path, mote_rewrite: Command, mote_verify: Command) -> None:
    """On a filesystem with reflinks nothing but the patched blocks is written, and mote-verify need not read the rest."""
    with filesystem(kind, tmp_path) as mounted:
        base, out = build_checkpoint(mounted / "base", hidden=1024), mounted / "out"
        total = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        chosen = write_set(tmp_path / "refusal.json", [(1, 3), (3, 0)])
        before, used = tree_state(base), used_bytes(mounted)
        outcome = mote_rewrite("--model", base, "--suppress", chosen, "-o", out, "--json")
        assert outcome.code == 0, outcome.stderr
        result = json.loads(outcome.stdout)
        assert result["shards"] == {"edited, blocks shared": 2, "reflink": 2}
        assert result["bytes_copied"] == 0 and result["bytes_shared"] == total
        assert used_bytes(mounted) - used < FREE_BLOCKS_BYTES < total / 2
        assert tree_state(base) == before

        proof = json.loads(mote_verify(out, "--base", base, "--json").stdout)
        assert proof["shards"] == {"shared blocks": 4}
        assert proof["bytes_read"] < 64 * 4096 and proof["bytes_by_extent"] > 0.99 * total
        assert mote_verify(out, "--base", base, "--full").code == 0

        plan = json.loads(
            mote_rewrite("--model", base, "--suppress", chosen, "-o", mounted / "o", "--dry-run", "--json").stdout
        )
        assert plan["changed_share_blocks"] and plan["unchanged_method"] == "reflink" and plan["needed_bytes"] == 0

        shard = shard_of(out, bias_name(2))  # a flip in a shard whose other blocks are still shared is found
        with shard.open("r+b") as opened:
            opened.seek(-5, os.SEEK_END)
            old = opened.read(1)
            opened.seek(-5, os.SEEK_END)
            opened.write(bytes([old[0] ^ 1]))
        assert "differs from the base" in mote_verify(out, "--base", base).error
        assert tree_state(base) == before


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_of_gguf_files_are_shared(
    kind: str, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    """Headers that grow by whole blocks leave the bodies shared; so do values alone, without a stamp."""
    with filesystem(kind, tmp_path) as mounted:
        base, chosen = mounted / "base", write_set(tmp_path / "refusal.json", [(1, 3), (3, 0)])
        write_split(base, tensors=model_tensors(hidden=4096))
        total = sum(path.stat().st_size for path in base.glob("*.gguf"))
        before = tree_state(base)
        for name, stamp in (("stamped", ()), ("plain", ("--no-stamp",))):
            used = used_bytes(mounted)
            outcome = mote_rewrite("--model", base, "--suppress", chosen, "-o", mounted / name, *stamp, "--json")
            assert outcome.code == 0, outcome.stderr
            result = json.loads(outcome.stdout)
            assert result["bytes_copied"] == 0 and result["bytes_shared"] > 0.99 * total
            assert used_bytes(mounted) - used < FREE_BLOCKS_BYTES < total / 2
            assert mote_verify(mounted / name, "--base", base, "--full").code == 0
        assert tree_state(base) == before


@pytest.mark.parametrize("kind", ["xfs"])
def test_hardlinks_and_other_modes_on_a_sharing_filesystem(
    kind: str, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    with filesystem(kind, tmp_path) as mounted:
        base = build_checkpoint(mounted / "base", hidden=128)
        chosen = write_set(tmp_path / "refusal.json", [(1, 3)])
        for link in ("hardlink", "symlink", "copy", "reflink"):
            out = mounted / link
            outcome = mote_rewrite("--model", base, "--suppress", chosen, "-o", out, "--link", link, "--json")
            assert json.loads(outcome.stdout)["shards"] == {"edited, blocks shared": 1, link: 3}
            assert mote_verify(out, "--base", base).code == 0


def test_disk_that_fills_up_while_it_is_written(tmp_path: Path, mote_rewrite: Command) -> None:
    """Free space that another process takes between the check and the copy."""
    with filesystem("xfs", tmp_path) as mounted:
        base = build_checkpoint(tmp_path / "base", hidden=1024)
        chosen = write_set(tmp_path / "refusal.json", [(1, 3)])
        with (mounted / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(mounted).free - (8 << 20))
        before, files = tree_state(base), sorted(mounted.iterdir())
        sentence = mote_rewrite("--model", base, "--suppress", chosen, "-o", mounted / "out", "--link", "copy").error
        assert "bytes free, but the variant needs" in sentence or "the disk is full" in sentence
        assert tree_state(base) == before and sorted(mounted.iterdir()) == files


def replica_script() -> Path | None:
    """The script that writes a sparse replica of DeepSeek-R1, kept with other shared material beside the repository."""
    shared = Path(os.environ.get("MOTE_SHARED", Path(__file__).parents[4] / "shared"))
    script = shared / "r1" / "make_sparse_r1.py"
    return script if script.exists() else None


def test_deepseek_r1_at_full_scale(tmp_path: Path) -> None:
    """163 shards, 642 GiB apparent: edited in the paper's ten places for little disk, memory and time."""
    script = replica_script()
    if script is None:
        pytest.skip("no sparse replica of DeepSeek-R1: set MOTE_SHARED to the folder that holds r1/make_sparse_r1.py")
    base, out = tmp_path / "DeepSeek-R1", tmp_path / "out"
    subprocess.run([sys.executable, str(script), str(base)], check=True, capture_output=True)
    check_at_scale(base, out, "preset:r1-refusal", num_edited=9)


def test_many_large_shards(tmp_path: Path) -> None:
    """The same without the replica: 163 shards of 4 GiB each, all holes but for a little data."""
    base = build_checkpoint(tmp_path / "base", num_shards=163, num_hidden_layers=62)
    rng = random.Random(0)
    for path in base.glob("*.safetensors"):
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        end = max(line["data_offsets"][1] for key, line in header.items() if key != "__metadata__")
        header[f"hole.{path.name}"] = {"dtype": "U8", "shape": [4 << 30], "data_offsets": [end, end + (4 << 30)]}
        text = json.dumps(header).encode() + b" " * rng.randrange(8)
        body = path.read_bytes()[-end:]
        with path.open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text + body)
            opened.truncate(8 + len(text) + end + (4 << 30))
    chosen = write_set(tmp_path / "refusal.json", [(layer, 3) for layer in range(1, 62, 6)])
    num_edited = len({shard_of(base, bias_name(layer)).name for layer in range(1, 62, 6)})
    check_at_scale(base, tmp_path / "out", str(chosen), num_edited)


def check_at_scale(base: Path, out: Path, suppress: str, num_edited: int) -> None:
    """Rewrite and verify in processes of their own, whose peak memory is then known."""
    before = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in base.iterdir()}
    rewrite = [
        sys.executable,
        "-m",
        "ftri.cli.rewrite",
        "--suppress",
        suppress,
        "--model",
        str(base),
        "-o",
        str(out),
        "--json",
    ]
    verify = [sys.executable, "-m", "ftri.cli.verify", str(out), "--base", str(base), "--json"]
    results = []
    for command in (rewrite, verify):
        script = (
            "import resource, subprocess, sys\n"
            "code = subprocess.run(sys.argv[1:]).returncode\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)\n"
            "sys.exit(code)\n"
        )
        completed = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
        assert int(completed.stderr.split()[-1]) < MEMORY_LIMIT_BYTES
        results.append(json.loads(completed.stdout))
    num_shards = len(list(base.glob("*.safetensors")))
    assert sum(count for how, count in results[0]["shards"].items() if how.startswith("edited")) == num_edited
    assert sum(results[0]["shards"].values()) == num_shards
    written = sum(path.stat().st_blocks * 512 for path in out.glob("*.safetensors") if path.stat().st_nlink == 1)
    assert written < 64 << 20
    assert results[1]["num_patches"] == len(json.loads((out / "config.json").read_text())["mote"]["tensors"])
    assert {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in base.iterdir()} == before
