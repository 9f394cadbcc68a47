"""What the engine tests share: prompts, transformers as the reference, and engines in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ftri.prompts.sets import PromptRecord, what_happened_listed

# float32, so that the order of a sum never decides between two experts.
ENGINE_ARGUMENTS: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8}
MAX_TOKENS = 12


def prompts(count: int, prefix: str = "") -> list[PromptRecord]:
    """Prompts of different lengths, all beginning with `prefix`."""
    listed = what_happened_listed()
    chosen = [listed[number * 37 % len(listed)] for number in range(count)]
    return [PromptRecord(prompt.prompt_id, prefix + prompt.text) for prompt in chosen]


@contextmanager
def drop_stale_vllm_settings() -> Iterator[None]:
    """Let an engine choose its process model, whatever an earlier test left in the environment."""
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_MLA_DISABLE"):
        os.environ.pop(name, None)
    yield


def run_engine(work: Path, environment: dict[str, str] | None = None, **job: Any) -> list[dict[str, Any]]:
    """Run this file as a script on a job (see main) and return its responses, experts as arrays."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "job.json").write_text(json.dumps(job))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    finished = subprocess.run(
        [sys.executable, __file__, str(work)],
        env=clean | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    responses: list[dict[str, Any]] = json.loads((work / "responses.json").read_text())
    with np.load(work / "experts.npz") as arrays:
        return [response | {"experts": arrays.get(str(number))} for number, response in enumerate(responses)]


def main(work: Path) -> None:
    """Generate for a job {model, count, arguments, prefix, temperature, max_tokens, edits, record}; facts of the run go into
    facts.json. `edits` are keywords of RouterEdit or None; every prompt is run with each of them, in one batch."""
    from ftri.engine.edits import RouterEdit
    from ftri.engine.engine import Engine, Sampling

    job = json.loads((work / "job.json").read_text())
    edits = [None if given is None else RouterEdit(**given) for given in job.get("edits", [None])]
    options = {"record": job.get("record", True), "live_edits": any(edits)}
    with Engine(job["model"], **options, engine_arguments=job["arguments"]) as engine:
        each = [engine.render(prompt) for prompt in prompts(job["count"], job.get("prefix", ""))]
        rendered = [prompt for prompt in each for _ in edits]
        sampling = Sampling(max_tokens=job.get("max_tokens", MAX_TOKENS), temperature=job.get("temperature", 0.0))
        facts = watch(engine)
        found = sorted(
            engine.generate(rendered, sampling, edit=edits * len(each) if any(edits) else None),
            key=lambda one: one.index,
        )
    responses = [{"prompt_token_ids": one.prompt.token_ids, "token_ids": one.token_ids} for one in found]
    (work / "responses.json").write_text(json.dumps(responses))
    (work / "facts.json").write_text(json.dumps(facts))
    experts = {str(number): one.experts for number, one in enumerate(found) if one.experts is not None}
    np.savez(work / "experts.npz", **experts)


def watch(engine: Any) -> dict[str, int]:
    """Counts of what the scheduler does from now on: what a test means to provoke has to have happened."""
    facts = {"preemptions": 0, "cached_tokens": 0, "partial_prefills": 0, "mixed_steps": 0}
    core = getattr(engine._llm.engine_core, "engine_core", None)
    if core is None:  # the engine runs in other processes
        return facts
    scheduler, schedule = core.scheduler, core.scheduler.schedule

    def counting(*arguments: Any, **keywords: Any) -> Any:
        output = schedule(*arguments, **keywords)
        prefills = decodes = 0
        for request_id, count in output.num_scheduled_tokens.items():
            request = scheduler.requests[request_id]
            # After scheduling, the tokens of this step already count as computed.
            done = request.num_computed_tokens
            is_prefill = done - count < request.num_prompt_tokens
            prefills, decodes = prefills + is_prefill, decodes + (not is_prefill)
            facts["partial_prefills"] += done < request.num_prompt_tokens
        facts["mixed_steps"] += bool(prefills and decodes)
        facts["preemptions"] += len(output.preempted_req_ids or ())
        facts["cached_tokens"] += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        return output

    scheduler.schedule = counting
    return facts


def reference_experts(folder: Path, sequences: Sequence[Sequence[int]], dtype: str = "float32") -> list[np.ndarray]:
    """The experts [T, L, K], ascending within K, that transformers selects for token sequences of length T."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    selected: dict[int, Any] = {}

    def keep(layer: int) -> Any:
        return lambda module, arguments, output: selected.__setitem__(layer, output[2])

    routers = {number: layer.mlp.gate for number, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}
    for number, router in routers.items():
        router.register_forward_hook(keep(number))
    experts = []
    for token_ids in sequences:
        with torch.no_grad():
            model(torch.tensor([list(token_ids)]))
        experts.append(np.sort(np.stack([selected[number].numpy() for number in sorted(routers)], axis=1), axis=-1))
    return experts


def ran(prompt_token_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
    """The tokens that were run through the model: all but the last sampled one."""
    return [*prompt_token_ids, *token_ids][:-1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
