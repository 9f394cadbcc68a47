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
import pytest

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


def runner_v2(work: Path) -> dict[str, str]:
    """The environment in which vLLM's CPU build runs its model runner V2.

    V2 wants Triton's CPU backend, which no wheel has; but Triton's interpreter runs its kernels on a CPU as well. So the
    backend that vLLM looks for is one by name only, of a package's metadata in `work`, as Triton finds its backends.
    """
    pytest.importorskip("triton", reason="vLLM's model runner V2 needs Triton")
    metadata = work / "cpu_backend-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-backend\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[triton.backends]\ncpu = triton.backends.nvidia\n")
    path = os.pathsep.join(filter(None, [str(work), os.environ.get("PYTHONPATH")]))
    return {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": path}


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
    """Generate for a job {model, count, arguments, prefix, temperature, max_tokens, edits, live_edits, record, weights, starts};
    facts of the run go into facts.json. `edits` are keywords of RouterEdit or None; every prompt is run with each of them, in one
    batch. With `starts` above 1 the engine is started that often, and the last one answers."""
    from ftri.engine.edits import RouterEdit
    from ftri.engine.engine import Engine, Sampling

    job = json.loads((work / "job.json").read_text())
    edits = [None if given is None else RouterEdit(**given) for given in job.get("edits", [None])]
    options = {"record": job.get("record", True), "live_edits": job.get("live_edits", any(edits))}
    options["weights"] = job.get("weights")
    for _ in range(job.get("starts", 1) - 1):
        Engine(job["model"], **options, engine_arguments=job["arguments"]).close()
    with Engine(job["model"], **options, engine_arguments=job["arguments"]) as engine:
        each = [engine.render(prompt) for prompt in prompts(job["count"], job.get("prefix", ""))]
        rendered = [prompt for prompt in each for _ in edits]
        sampling = Sampling(max_tokens=job.get("max_tokens", MAX_TOKENS), temperature=job.get("temperature", 0.0))
        facts: dict[str, Any] = watch(engine)
        found = sorted(
            engine.generate(rendered, sampling, edit=edits * len(each) if any(edits) else None),
            key=lambda one: one.index,
        )
        runner = type(engine._llm.model_executor.driver_worker.worker.model_runner)
        facts |= {"runner": f"{runner.__module__}.{runner.__name__}", "capture": engine.capture}
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


def reference_rows(
    folder: Path, sequences: Sequence[Sequence[int]], dtype: str = "float32"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The experts [T, L, K], ascending within K, and their weights [T, L, K] float32, that transformers selects for token
    sequences of length T; without the routed scaling factor, which vLLM applies to DeepSeek-V3's layer output."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    selected: dict[int, Any] = {}
    scaling = model.config.routed_scaling_factor

    def keep(layer: int) -> Any:
        return lambda module, arguments, output: selected.__setitem__(layer, output[1:])

    routers = {number: layer.mlp.gate for number, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}
    for number, router in routers.items():
        router.register_forward_hook(keep(number))
    rows = []
    for token_ids in sequences:
        with torch.no_grad():
            model(torch.tensor([list(token_ids)]))
        weights, experts = (
            np.stack([selected[number][place].float().numpy() for number in sorted(routers)], axis=1)
            for place in (0, 1)
        )
        order = experts.argsort(axis=-1)
        rows.append(
            (np.take_along_axis(experts, order, -1).astype(int), np.take_along_axis(weights, order, -1) / scaling)
        )
    return rows


def reference_experts(folder: Path, sequences: Sequence[Sequence[int]], dtype: str = "float32") -> list[np.ndarray]:
    """The experts of reference_rows."""
    return [experts for experts, _ in reference_rows(folder, sequences, dtype)]


def ran(prompt_token_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
    """The tokens that were run through the model: all but the last sampled one."""
    return [*prompt_token_ids, *token_ids][:-1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
