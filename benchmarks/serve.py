"""What edits cost a running vLLM: the base alone, the plugin installed, a static variant and a dial, as ratios in one run.

usage: python benchmarks/serve.py MODEL SET [--compiled] [--rounds 3] [--prompts 64] [--max-tokens 64]

Every arm is a process of its own; the arms take turns, round by round, so that a machine that grows busier weighs on all of
them. Throughput is given by the clock and by the processor's time, which other programs touch less. The dial's prompts choose in
turn: the base, the set, and the set at half strength. With --compiled the base is also run eagerly.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This folder holds a script named ftri.py, which would stand in for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

ARMS = ("base", "plugin", "static", "dial")
# What a compiled base is compared with; live edits were eager only once.
EAGER = "eager"
CHOICES = ({}, {"mote": "set"}, {"mote": "set", "mote_strength": 0.5})


def run_arm(job: dict) -> None:
    """In a process of its own: load, warm up, answer; prints seconds and tokens as JSON."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        job["folder"],
        max_model_len=512,
        max_num_seqs=64,
        seed=0,
        enforce_eager=not job["compiled"] or job["arm"] == EAGER,
        disable_log_stats=True,
    )
    chats = [
        [{"role": "user", "content": f"What happened {1900 + number} at Berlin Wall?"}]
        for number in range(job["prompts"])
    ]
    params = [
        SamplingParams(
            max_tokens=job["max_tokens"],
            temperature=0,
            ignore_eos=True,
            extra_args=CHOICES[number % len(CHOICES)] if job["arm"] == "dial" else None,
        )
        for number in range(len(chats))
    ]
    llm.chat(chats, params, use_tqdm=False)  # kernels and graphs are made at first use
    clock, processor = time.monotonic(), time.process_time()
    outputs = llm.chat(chats, params, use_tqdm=False)
    seconds = time.monotonic() - clock, time.process_time() - processor
    num_tokens = sum(len(one.outputs[0].token_ids) for one in outputs)
    print("RESULT" + json.dumps({"clock": num_tokens / seconds[0], "processor": num_tokens / seconds[1]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.model.resolve().parent) as scratch:
        arms = (*ARMS, EAGER) if arguments.compiled else ARMS
        folders = {"base": arguments.model, "plugin": arguments.model, EAGER: arguments.model}
        words = {
            "static": ["--semantics", "drop-renorm", "--suppress", arguments.set],
            "dial": ["--dial", f"set={arguments.set}"],
        }
        for arm, how in words.items():
            folders[arm] = Path(scratch) / arm
            command = [
                sys.executable,
                "-m",
                "ftri.cli.rewrite",
                "--model",
                arguments.model,
                "-o",
                folders[arm],
                *how,
            ]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in range(arguments.rounds):
            for arm in arms:
                job = vars(arguments) | {"arm": arm, "folder": str(folders[arm]), "model": None, "set": None}
                # One process, so that its time is all of vLLM's; no plugin at all beside the base.
                environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
                if arm in ("base", EAGER):
                    environment["VLLM_PLUGINS"] = "none"
                command = [sys.executable, __file__, "--arm", json.dumps(job)]
                finished = subprocess.run(command, env=environment, capture_output=True, text=True)
                if finished.returncode:
                    sys.exit(finished.stderr[-3000:])
                found[arm].append(json.loads(finished.stdout.split("RESULT")[-1]))
    print(f"{processor_name()}, {'compiled' if arguments.compiled else 'eager'}, {arguments.rounds} rounds")
    print(f"{'arm':8} {'tokens/s':>10} {'to base':>8} {'tokens/CPU s':>13} {'to base':>8}")
    for arm in arms:
        values = {kind: statistics.median(one[kind] for one in found[arm]) for kind in ("clock", "processor")}
        ratios = {
            kind: statistics.median(one[kind] / base[kind] for one, base in zip(found[arm], found["base"], strict=True))
            for kind in values
        }
        print(
            f"{arm:8} {values['clock']:10.1f} {ratios['clock']:8.3f} {values['processor']:13.1f} {ratios['processor']:8.3f}"
        )


def processor_name() -> str:
    """The processor, as Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arm"]:
        run_arm(json.loads(sys.argv[2]))
    else:
        main()
