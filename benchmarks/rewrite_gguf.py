"""What rewriting a GGUF of DeepSeek-R1's size costs, and what copying costs where nothing can be shared, all in one run.

    python benchmarks/rewrite_gguf.py [--work DIR] [--size-gib N] [--repeats N]

Prints a Markdown table. The 245 GB set is sparse: true names, shapes, types, a vocabulary of R1's size and random biases,
holes for the rest. The copied file is full; it takes twice --size-gib (4) of disk in --work.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HIDDEN, NUM_EXPERTS, NUM_LAYERS, NUM_DENSE, VOCABULARY, NUM_FILES = 7168, 256, 61, 3, 129280, 15
ALIGNMENT = 32
TYPES = {"F32": (0, 1, 4), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110)}  # number, block, bytes
NUM_MERGES = 127741
EXPERTS = [[layer, 7 * layer % NUM_EXPERTS] for layer in range(10, 60, 5)]
PEAK = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    "sys.exit(code)\n"
)
PLAN = """
import sys, time
from rewriter.rewrite import RewriteRequest, prepare
started = time.perf_counter()
prepare(RewriteRequest(suppress=sys.argv[1], model=sys.argv[2]), say=print)
print(time.perf_counter() - started)
"""
Shape = tuple[str, tuple[int, ...]]  # type, lengths with the fastest first


def layer_tensors(layer: int) -> dict[str, Shape]:
    """The tensors of one layer under llama.cpp's names."""
    prefix = f"blk.{layer}."
    tensors: dict[str, Shape] = {
        "attn_norm.weight": ("F32", (HIDDEN,)),
        "ffn_norm.weight": ("F32", (HIDDEN,)),
        "attn_q_a.weight": ("Q8_0", (HIDDEN, 1536)),
        "attn_q_a_norm.weight": ("F32", (1536,)),
        "attn_q_b.weight": ("Q8_0", (1536, 24576)),
        "attn_kv_a_mqa.weight": ("Q8_0", (HIDDEN, 576)),
        "attn_kv_a_norm.weight": ("F32", (512,)),
        "attn_k_b.weight": ("Q8_0", (128, 512, 128)),
        "attn_v_b.weight": ("Q8_0", (512, 128, 128)),
        "attn_output.weight": ("Q8_0", (16384, HIDDEN)),
    }
    if layer < NUM_DENSE:
        mlps = {
            "ffn_gate.weight": (HIDDEN, 18432),
            "ffn_up.weight": (HIDDEN, 18432),
            "ffn_down.weight": (18432, HIDDEN),
        }
        tensors |= {name: ("Q8_0", lengths) for name, lengths in mlps.items()}
    else:
        tensors |= {
            "ffn_gate_inp.weight": ("F32", (HIDDEN, NUM_EXPERTS)),
            "exp_probs_b.bias": ("F32", (NUM_EXPERTS,)),
            "ffn_gate_exps.weight": ("Q2_K", (HIDDEN, 2048, NUM_EXPERTS)),
            "ffn_up_exps.weight": ("Q2_K", (HIDDEN, 2048, NUM_EXPERTS)),
            "ffn_down_exps.weight": ("Q3_K", (2048, HIDDEN, NUM_EXPERTS)),
            "ffn_gate_shexp.weight": ("Q8_0", (HIDDEN, 2048)),
            "ffn_up_shexp.weight": ("Q8_0", (HIDDEN, 2048)),
            "ffn_down_shexp.weight": ("Q8_0", (2048, HIDDEN)),
        }
    return {prefix + name: shape for name, shape in tensors.items()}


def size_of(shape: Shape) -> int:
    """Bytes of a tensor."""
    _, block, size = TYPES[shape[0]]
    return int(np.prod(shape[1], dtype=np.int64)) // block * size


def text(value: str) -> bytes:
    """A string of the format."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(number: int, num_files: int, num_tensors: int) -> list[bytes]:
    """The pairs of one file; the model's own stand in the first."""
    pairs = [
        text("split.no") + struct.pack("<IH", 2, number),
        text("split.count") + struct.pack("<IH", 2, num_files),
        text("split.tensors.count") + struct.pack("<Ii", 5, num_tensors),
    ]
    if number:
        return pairs
    numbers = {
        "block_count": NUM_LAYERS, "leading_dense_block_count": NUM_DENSE, "expert_count": NUM_EXPERTS,
        "expert_used_count": 8, "expert_group_count": 8, "expert_group_used_count": 4, "expert_gating_func": 2,
    }  # fmt: skip
    tokens = b"".join(text(f"token{number}") for number in range(VOCABULARY))
    merges = b"".join(text(f"left{number} right") for number in range(NUM_MERGES))
    return [
        text("general.architecture") + struct.pack("<I", 8) + text("deepseek2"),
        *(text(f"deepseek2.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()),
        text("deepseek2.expert_weights_norm") + struct.pack("<IB", 7, 1),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, VOCABULARY) + tokens,
        text("tokenizer.ggml.token_type") + struct.pack(f"<IIQ{VOCABULARY}i", 9, 5, VOCABULARY, *[1] * VOCABULARY),
        text("tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, NUM_MERGES) + merges,
        *pairs,
    ]


def write(path: Path, pairs: list[bytes], tensors: dict[str, Shape], *, fill: bool) -> None:
    """One file: biases are random, other tensors holes, or random bytes with `fill`."""
    rng = np.random.default_rng(0)
    infos, places, position = b"", {}, 0
    for name, shape in tensors.items():
        lengths = shape[1]
        form = f"<I{len(lengths)}QIQ"
        infos += text(name) + struct.pack(form, len(lengths), *lengths, TYPES[shape[0]][0], position)
        places[name] = position
        position += -(-size_of(shape) // ALIGNMENT) * ALIGNMENT
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    head += bytes(-len(head) % ALIGNMENT)
    with path.open("wb") as opened:
        opened.write(head)
        for name, shape in tensors.items():
            opened.seek(len(head) + places[name])
            if name.endswith("exp_probs_b.bias"):
                opened.write((4 + rng.random(NUM_EXPERTS, np.float32)).tobytes())
            elif fill:
                for start in range(0, size_of(shape), 64 << 20):
                    opened.write(rng.bytes(min(64 << 20, size_of(shape) - start)))
        opened.truncate(len(head) + position)
        os.fsync(opened.fileno())


def build_sparse(folder: Path) -> Path:
    """The set of 15 files."""
    folder.mkdir()
    tensors: dict[str, Shape] = {"token_embd.weight": ("Q8_0", (HIDDEN, VOCABULARY))}
    for layer in range(NUM_LAYERS):
        tensors |= layer_tensors(layer)
    tensors |= {"output_norm.weight": ("F32", (HIDDEN,)), "output.weight": ("Q8_0", (HIDDEN, VOCABULARY))}
    limit = sum(map(size_of, tensors.values())) / NUM_FILES
    files: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        if filled >= limit * len(files) and len(files) < NUM_FILES:
            files.append({})
        files[-1][name] = shape
        filled += size_of(shape)
    for number, chosen in enumerate(files):
        path = folder / f"R1-{number + 1:05d}-of-{len(files):05d}.gguf"
        write(path, metadata(number, len(files), len(tensors)), chosen, fill=False)
    return folder


def build_full(path: Path, size_gib: float) -> Path:
    """One file whose tensors are all there, of about so many GiB: the layers that fit, the last one with experts."""
    tensors: dict[str, Shape] = {}
    layer = NUM_DENSE
    while sum(map(size_of, tensors.values())) < size_gib * 2**30:
        tensors |= layer_tensors(layer)
        layer += 1
    pairs = metadata(0, 1, len(tensors))
    write(path, pairs, tensors, fill=True)
    return path


def timed(action: Callable[[], object], clean: Callable[[], object], repeats: int) -> float:
    """Median wall seconds of an action, cleaned up after each time."""
    times = []
    for _ in range(repeats):
        os.sync()
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
        clean()
    return statistics.median(times)


def command(base: Path, suppress: Path, target: Path, *more: str) -> list[str]:
    """mote-rewrite as a user runs it."""
    return [
        sys.executable, "-m", "ftri.cli.rewrite", "--model", str(base), "--suppress", str(suppress), "-o", str(target),
        *more,
    ]  # fmt: skip


def run(arguments: list[str]) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def experts_file(folder: Path, experts: list[list[int]]) -> Path:
    """An expert set."""
    path = folder / f"experts-{len(experts)}.json"
    document = {
        "schema": "mote.expert-set/1",
        "layer_index": "model",
        "behavior": "benchmark",
        "experts": [{"layer": layer, "expert": expert} for layer, expert in experts],
    }
    path.write_text(json.dumps(document))
    return path


def copy_durably(source: Path, target: Path) -> None:
    """`cp`, and what makes the copy as durable as a rewrite."""
    run(["cp", "--reflink=never", str(source), str(target)])
    run(["sync", str(target)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=None, help="where to write [default: a temporary folder]")
    parser.add_argument("--size-gib", type=float, default=4, help="of the file that is copied in full")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="mote-gguf-") as name:
        work, target = Path(name), Path(name) / "out"
        sparse = build_sparse(work / "sparse")
        size = sum(path.stat().st_size for path in sparse.iterdir())
        suppress = experts_file(work, EXPERTS)
        clean = lambda: shutil.rmtree(target)  # noqa: E731
        start = timed(
            lambda: run([sys.executable, "-c", "import rewriter.variant.write"]), lambda: None, options.repeats
        )
        plan = statistics.median(
            float(run([sys.executable, "-c", PLAN, str(suppress), str(sparse)]).splitlines()[-1])
            for _ in range(options.repeats)
        )
        whole = timed(lambda: run(command(sparse, suppress, target)), clean, options.repeats)
        result = json.loads(run(command(sparse, suppress, target, "--json")))
        clean()
        peak = int(run([sys.executable, "-c", PEAK, *command(sparse, suppress, target)]))
        clean()
        full = build_full(work / "full.gguf", options.size_gib)
        one = experts_file(work, [[NUM_DENSE, 5]])
        copied = work / "copied.gguf"
        cp = timed(lambda: copy_durably(full, copied), copied.unlink, options.repeats)
        ours = timed(lambda: run(command(full, one, target)), clean, options.repeats)
        how = json.loads(run(command(full, one, target, "--json")))
    shards = ", ".join(f"{count} {method}" for method, count in result["shards"].items())
    shared = "its blocks shared" if how["bytes_shared"] else "copied"
    print(f"| sparse R1 in {NUM_FILES} files, {size / 1e9:.0f} GB ({shards}) | value | aim |\n|---|---|---|")
    print(f"| plan: all headers, {len(EXPERTS)} biases, feasibility | {plan:.2f} s | 0.5 s |")
    print(f"| whole command (Python and imports alone: {start:.2f} s) | {whole:.2f} s | 1 s with reflinks |")
    print(f"| peak memory | {peak / 1e6:.0f} MB | 120 MB |")
    print(f"| one file of {options.size_gib:g} GiB, {shared}: command / `cp` and sync | {ours / cp:.2f} | 1.10 |")
    print(f"\nLoad average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    print(f"`cp` and sync of the full file: {cp:.2f} s; mote-rewrite: {ours:.2f} s.")


if __name__ == "__main__":
    main()
