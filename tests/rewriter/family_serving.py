"""Serves checkpoints with unmodified vLLM and writes down what its routers chose; run as a program, once for each family.

python family_serving.py [--prompts N] [--prompt-tokens N] ANSWER.json FOLDER...
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

NUM_PROMPTS, PROMPT_TOKENS, GENERATED_TOKENS = 8, 40, 8


def serve(folder: str, num_prompts: int, prompt_tokens: int) -> dict[str, Any]:
    """Generate from one checkpoint.

    Returns: `selected`, by model layer the experts of every token [T, K]; `zero`, by model layer the experts whose output
    matrix is zero as loaded; `tokens`, the generated ones of each prompt.
    """
    import numpy as np
    import torch
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    # Where the processor has AMX instructions, vLLM's own choice for latent attention takes no float32.
    llm = LLM(
        folder,
        dtype="float32",
        attention_backend="CPU_MLA",
        max_model_len=128,
        max_num_seqs=8,
        enforce_eager=True,
        seed=0,
    )
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    selected: dict[int, list[torch.Tensor]] = {}
    zero: dict[int, list[int]] = {}
    for module in model.modules():
        if type(module).__name__ == "MoERunner":
            rows = selected.setdefault(module.layer_id, [])
            module.router.set_capture_fn(lambda ids, rows=rows: rows.append(ids.clone()))
            weight = next(tensor for name, tensor in module.named_parameters() if name.endswith("w2_weight"))
            zero[module.layer_id] = [expert for expert in range(weight.shape[0]) if not weight[expert].any()]
    random = np.random.default_rng(0)
    prompts = [{"prompt_token_ids": random.integers(6, 250, prompt_tokens).tolist()} for _ in range(num_prompts)]
    sampling = SamplingParams(max_tokens=GENERATED_TOKENS, temperature=0, ignore_eos=True)
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    del llm, model
    cleanup_dist_env_and_memory()
    return {
        "selected": {layer: torch.cat(rows).tolist() for layer, rows in selected.items()},
        "zero": zero,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
    }


def main() -> None:
    """Serve the folders one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answer", type=Path)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    arguments = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    answers = [serve(folder, arguments.prompts, arguments.prompt_tokens) for folder in arguments.folders]
    arguments.answer.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
