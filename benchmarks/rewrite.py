"""What a rewrite costs, beside `cp` of the affected shards and the ways it is done otherwise, all in one run.

    python benchmarks/rewrite.py [--work DIR] [--shards N] [--layers-per-shard N] [--affected N] [--repeats N]
        [--mergekit PYTHON] [--skip mergekit,transformers,...]

Prints a Markdown table of ratios. Needs about three times the model's size (24 GB by default) on the disk of --work, and its
size in memory for transformers. Parts that cannot be run here (no replica of DeepSeek-R1, no root for a reflink image, no
mergekit) say so in the table.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HIDDEN, INTERMEDIATE, NUM_EXPERTS = 1024, 512, 64
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": HIDDEN,
    "intermediate_size": 2048, "moe_intermediate_size": INTERMEDIATE, "n_routed_experts": NUM_EXPERTS,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 0,
    "num_attention_heads": 8, "num_key_value_heads": 8, "q_lora_rank": 256, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 1024, "hidden_act": "silu",
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-06, "rope_theta": 10000, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FIRST_EDITED_SHARD = 3
MEMORY_SCRIPT = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    "sys.exit(code)\n"
)
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
for layer in map(int, sys.argv[3].split(",")):
    model.model.layers[layer].mlp.gate.e_score_correction_bias[0] = float("-inf")
model.save_pretrained(sys.argv[2], max_shard_size=sys.argv[4])
"""
SAFETENSORS = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
source, target = Path(sys.argv[1]), Path(sys.argv[2])
target.mkdir()
for path in sorted(source.glob("*.safetensors")):
    tensors = load_file(path)
    for layer in map(int, sys.argv[3].split(",")):
        name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        if name in tensors:
            tensors[name][0] = float("-inf")
    save_file(tensors, target / path.name, metadata={"format": "pt"})
"""
Row = tuple[str, str, str]


def build(folder: Path, num_shards: int, layers_per_shard: int) -> Path:
    """A random DeepSeek-V3 of 200 MB a layer."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        shapes = {}
        for layer in range(number * layers_per_shard, (number + 1) * layers_per_shard):
            shapes |= layer_shapes(layer)
        if number == 0:
            shapes["model.embed_tokens.weight"] = [1024, HIDDEN]
        if number == num_shards - 1:
            shapes |= {"model.norm.weight": [HIDDEN], "lm_head.weight": [1024, HIDDEN]}
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        header, position = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shapes.items():
            is_bias = name.endswith("e_score_correction_bias")
            size = int(np.prod(shape)) * (4 if is_bias else 2)
            header[name] = {
                "dtype": "F32" if is_bias else "BF16",
                "shape": shape,
                "data_offsets": [position, position + size],
            }  # type: ignore[assignment]
            position += size
        text = json.dumps(header, separators=(",", ":")).encode()
        with (folder / shard).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for name, shape in shapes.items():
                if name.endswith("e_score_correction_bias"):
                    opened.write((4 + rng.random(shape, np.float32)).tobytes())
                else:
                    opened.write(rng.bytes(int(np.prod(shape)) * 2))
            os.fsync(opened.fileno())
        weight_map |= dict.fromkeys(shapes, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps(CONFIG | {"num_hidden_layers": num_shards * layers_per_shard}, indent=2)
    )
    return folder


def layer_shapes(layer: int) -> dict[str, list[int]]:
    """The tensors of one layer."""
    prefix = f"model.layers.{layer}."
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    shapes: dict[str, list[int]] = {
        f"{prefix}input_layernorm.weight": [HIDDEN],
        f"{prefix}post_attention_layernorm.weight": [HIDDEN],
        f"{attention}q_a_proj.weight": [256, HIDDEN],
        f"{attention}q_a_layernorm.weight": [256],
        f"{attention}q_b_proj.weight": [8 * 192, 256],
        f"{attention}kv_a_proj_with_mqa.weight": [576, HIDDEN],
        f"{attention}kv_a_layernorm.weight": [512],
        f"{attention}kv_b_proj.weight": [8 * 256, 512],
        f"{attention}o_proj.weight": [HIDDEN, 8 * 128],
        f"{mlp}gate.weight": [NUM_EXPERTS, HIDDEN],
        f"{mlp}gate.e_score_correction_bias": [NUM_EXPERTS],
    }
    for expert in [*(f"experts.{number}" for number in range(NUM_EXPERTS)), "shared_experts"]:
        shapes[f"{mlp}{expert}.gate_proj.weight"] = [INTERMEDIATE, HIDDEN]
        shapes[f"{mlp}{expert}.up_proj.weight"] = [INTERMEDIATE, HIDDEN]
        shapes[f"{mlp}{expert}.down_proj.weight"] = [HIDDEN, INTERMEDIATE]
    return shapes


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


def call(*command: object, **keywords: object) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, **keywords)  # type: ignore[call-overload]


def rewrite_command(base: Path, suppress: str, target: Path, *more: str) -> list[object]:
    """mote-rewrite as a user calls it."""
    command = Path(sys.executable).with_name("mote-rewrite")
    return [command, "--suppress", suppress, "--model", base, "-o", target, *more]


def peak_memory(command: list[object]) -> int:
    """Peak resident bytes of a command."""
    parts = [sys.executable, "-c", MEMORY_SCRIPT, *map(str, command)]
    return int(subprocess.run(parts, check=True, capture_output=True, text=True).stdout)


def bench_start(repeats: int) -> list[Row]:
    """Starting the command line."""
    command = Path(sys.executable).with_name("mote-rewrite")
    bare = timed(lambda: call(sys.executable, "-c", "pass"), lambda: None, repeats * 3)
    seconds = timed(lambda: call(command, "--help"), lambda: None, repeats * 3)
    return [("`mote-rewrite --help`", f"{seconds:.2f} s", f"Python itself {bare:.2f} s; claim: below 0.35 s")]


def bench_replica(work: Path, repeats: int) -> list[Row]:
    """DeepSeek-R1's sparse replica: planning, the whole rewrite, and memory."""
    shared = Path(os.environ.get("MOTE_SHARED", Path(__file__).parents[2] / "shared"))
    script = shared / "r1" / "make_sparse_r1.py"
    if not script.exists():
        return [("full-scale replica of DeepSeek-R1", "not run", "set MOTE_SHARED to the folder with r1/")]
    base, target = work / "DeepSeek-R1", work / "r1-variant"
    call(sys.executable, script, base)
    planning = (
        "import sys, time\nfrom pathlib import Path\nimport rewriter.hub.models\n"
        "from rewriter.rewrite import RewriteRequest, prepare\n"
        "started = time.perf_counter()\n"
        "prepare(RewriteRequest(suppress='preset:r1-refusal', model=sys.argv[1]), say=lambda text: None)\n"
        "print(time.perf_counter() - started)\n"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", planning, base], check=True, capture_output=True, text=True).stdout)
        for _ in range(repeats * 3)
    ]
    command = rewrite_command(base, "preset:r1-refusal", target)
    seconds = timed(lambda: call(*command), lambda: shutil.rmtree(target), repeats)
    memory = peak_memory(command)
    verify = [Path(sys.executable).with_name("mote-verify"), target, "--base", base]
    rows = [
        ("R1 replica: plan (config, index, 9 headers)", f"{statistics.median(times):.2f} s", "claim: below 0.5 s"),
        ("R1 replica: `mote-rewrite` from start to end", f"{seconds:.2f} s", "163 shards, 642 GiB apparent"),
        ("R1 replica: peak memory of `mote-rewrite`", f"{memory / 1e6:.0f} MB", "claim: below 120 MB"),
        ("R1 replica: peak memory of `mote-verify`", f"{peak_memory(verify) / 1e6:.0f} MB", "claim: below 120 MB"),
        ("R1 replica: peak memory of `mote-verify --full`", f"{peak_memory([*verify, '--full']) / 1e6:.0f} MB", ""),
    ]
    shutil.rmtree(target)
    shutil.rmtree(base)
    return rows


def bench_copy(work: Path, base: Path, suppress: Path, options: argparse.Namespace, skip: set[str]) -> list[Row]:
    """Random data on this disk: against `cp` of the affected shards, and against what people do today."""
    target, copies = work / "variant", work / "copies"
    shards = [base / f"model-{number + 1:05d}-of-{options.shards:05d}.safetensors" for number in edited_shards(options)]
    layers = ",".join(str(layer) for layer in edited_layers(options))

    def copy(sync: bool) -> None:
        copies.mkdir()
        call("cp", "--reflink=never", *shards, copies)
        if sync:
            call("sync", *copies.iterdir())

    command = rewrite_command(base, str(suppress), target, "--json")
    emitting: list[float] = []

    def rewrite() -> None:
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        emitting.append(json.loads(done.stdout)["seconds"])

    whole, plain, durable = [], [], []
    for _ in range(options.repeats):  # interleaved, since a shared machine's pace changes from minute to minute
        whole.append(timed(rewrite, lambda: shutil.rmtree(target), 1))
        durable.append(timed(lambda: copy(True), lambda: shutil.rmtree(copies), 1))
        plain.append(timed(lambda: copy(False), lambda: shutil.rmtree(copies), 1))
    ours, cp_synced, cp_plain = (statistics.median(times) for times in (whole, durable, plain))
    written = statistics.median(emitting)
    rows = [
        ("`mote-rewrite`, start to end", f"{ours:.2f} s", f"of which writing {written:.2f} s"),
        ("`cp` of the affected shards, and `sync` of them", f"{cp_synced:.2f} s",
         f"rewrite / cp = {ours / cp_synced:.2f}, writing / cp = {written / cp_synced:.2f}; claim: 1.10"),
        ("`cp` alone, not durable", f"{cp_plain:.2f} s", f"rewrite / cp = {ours / cp_plain:.2f}"),
    ]  # fmt: skip
    memory = peak_memory(command)
    shutil.rmtree(target)
    rows.append(("peak memory of `mote-rewrite`", f"{memory / 1e6:.0f} MB", "claim: below 120 MB"))
    for name, script in (("transformers load, edit, save_pretrained", TRANSFORMERS),
                         ("every shard through load_file / save_file", SAFETENSORS)):  # fmt: skip
        if name.split()[0] not in skip:
            command = [sys.executable, "-c", script, base, target, layers, f"{200 * options.layers_per_shard + 50}MB"]
            rows.append(other_way(name, command, target, ours))
    if "mergekit" not in skip:
        recipe = work / "passthrough.yml"
        recipe.write_text(f"models:\n  - model: {base}\nmerge_method: passthrough\ndtype: bfloat16\n")
        run = "import sys; from mergekit.scripts.run_yaml import main; main()"
        rows.append(other_way("mergekit passthrough", [options.mergekit, "-c", run, recipe, target], target, ours))
    return rows


def other_way(name: str, command: list[object], target: Path, ours: float) -> Row:
    """Time another way of doing it, once, until its result is on the disk as ours is."""
    os.sync()
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if target.is_dir():
        call("sync", *target.iterdir())
    seconds = time.perf_counter() - started
    shutil.rmtree(target, ignore_errors=True)
    if done.returncode == -signal.SIGKILL:
        return name, "not run", "killed by the system: it holds the whole model, more than the memory here"
    if done.returncode:
        return name, "not run", done.stderr.strip().splitlines()[-1][:120].replace("|", "/")
    return name, f"{seconds:.1f} s", f"{seconds / ours:.0f} times `mote-rewrite`"


def bench_reflink(work: Path, base: Path, suppress: Path, options: argparse.Namespace) -> list[Row]:
    """The same model on a filesystem that shares blocks, in an image file."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        return [("XFS with reflinks", "not run", "needs root and mkfs.xfs")]
    size = sum(path.stat().st_size for path in base.iterdir())
    image, mounted = work / "xfs.img", work / "xfs"
    with image.open("wb") as opened:
        opened.truncate(3 * size + (1 << 30))
    call("mkfs.xfs", "-q", image)
    mounted.mkdir()
    call("mount", "-o", "loop", image, mounted)
    try:
        call("cp", "-r", base, mounted / "base")
        shutil.rmtree(base)  # the last part: what it takes is needed for what the other ways write
        inside, target = mounted / "base", mounted / "variant"
        command = rewrite_command(inside, str(suppress), target, "--json")
        emitting: list[float] = []

        def rewrite() -> None:
            done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
            emitting.append(json.loads(done.stdout)["seconds"])

        ours = timed(rewrite, lambda: shutil.rmtree(target), options.repeats)
        written = statistics.median(emitting)
        used = shutil.disk_usage(mounted).used
        rewrite()
        os.sync()
        grown = shutil.disk_usage(mounted).used - used
        shutil.rmtree(target)
        rows = [("XFS: `mote-rewrite`, start to end", f"{ours:.2f} s",
                 f"of which writing {written:.3f} s; {grown / 1e6:.1f} MB more on disk")]  # fmt: skip
        name, seconds, _ = other_way("XFS: every shard through load_file / save_file",
                                     [sys.executable, "-c", SAFETENSORS, inside, target,
                                      ",".join(str(layer) for layer in edited_layers(options))], target, ours)  # fmt: skip
        if seconds != "not run":
            other = float(seconds.split()[0])
            rows.append((name, seconds, f"{other / ours:.0f} times the whole, {other / written:.0f} times the writing"))
        return rows
    finally:
        call("umount", mounted)
        image.unlink()


def edited_shards(options: argparse.Namespace) -> range:
    """The shards whose first layer is edited."""
    return range(FIRST_EDITED_SHARD, FIRST_EDITED_SHARD + options.affected)


def edited_layers(options: argparse.Namespace) -> list[int]:
    """The layers whose selection bias is edited."""
    return [number * options.layers_per_shard for number in edited_shards(options)]


def main() -> None:
    """Run all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, help="folder on the disk to measure [default: the temporary folder]")
    parser.add_argument("--shards", type=int, default=28)
    parser.add_argument("--layers-per-shard", type=int, default=4, help="layers of 200 MB [default: 4]")
    parser.add_argument("--affected", type=int, default=2, help="shards that an edit touches [default: 2]")
    parser.add_argument("--mergekit", default=sys.executable, help="a Python that has mergekit [default: this one]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", default="", help="comma-separated: replica,transformers,every,mergekit,reflink")
    options = parser.parse_args()
    skip = set(options.skip.split(","))
    rows: list[Row] = bench_start(options.repeats)
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        if "replica" not in skip:
            rows += bench_replica(work, options.repeats)
        base = build(work / "base", options.shards, options.layers_per_shard)
        size = sum(path.stat().st_size for path in base.iterdir())
        experts = [{"layer": layer, "expert": 0} for layer in edited_layers(options)]
        suppress = work / "set.json"
        suppress.write_text(json.dumps({"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "bench",
                                        "experts": experts}))  # fmt: skip
        rows.append(
            ("**random data**", f"{size / 1e9:.1f} GB", f"{options.shards} shards, {options.affected} affected")
        )
        rows += bench_copy(work, base, suppress, options, skip)
        if "reflink" not in skip:
            rows += bench_reflink(work, base, suppress, options)
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n\n| what | measured | beside |\n|---|---|---|"
    )
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
