"""A small made-up trace: its manifest, and responses by number."""

from typing import Any

import numpy as np

from ftri.traces.reader import TraceRecord

MANIFEST: dict[str, Any] = {
    "model": "tiny",
    "revision": None,
    "config_sha256": "0" * 64,
    "moe_layers": [1, 2, 3],
    "num_experts": 16,
    "top_k": 4,
    "template_sha256": "1" * 64,
    "sampling": {"temperature": 0.0, "max_tokens": 8},
    "versions": {"vllm": "0.32.0"},
}


def make_record(number: int, sample: int = 0, num_experts: int = 16, seed: int | None = None) -> TraceRecord:
    generator = np.random.default_rng([number, sample] if seed is None else seed)
    num_prompt, num_completion = int(generator.integers(1, 40)), int(generator.integers(1, 20))
    rows = num_prompt + num_completion - 1
    order = np.argsort(generator.random((rows, 3, num_experts)), axis=-1)[..., :4]
    experts = np.sort(order, axis=-1).astype(np.uint8 if num_experts <= 256 else np.uint16)
    return TraceRecord(
        prompt_id=f"p{number:04d}",
        sample=sample,
        prompt=f"What happened {number}?",
        rendered_prompt=f"<user>What happened {number}?<assistant>",
        prompt_token_ids=generator.integers(0, 500, num_prompt).tolist(),
        completion_token_ids=generator.integers(0, 500, num_completion).tolist(),
        text="北京 \n answer",
        finish_reason="stop",
        factors={"time": str(number)},
        experts=experts,
    )
