"""What edits cost a running vLLM: the base alone, the plugin installed, a static variant and a dial, as ratios in one run.

usage: python benchmarks/serve.py MODEL SET [--compiled] [--dtype float32] [--arms base,dial] [--rounds 5] [--prompts 64]

The arms take turns (turns.py). The dial's prompts choose in turn: the base, the set, and the set at half strength. With
--compiled the base is also run eagerly. A processor without bfloat16 instructions spends nearly all its time on bfloat16
(and a base that slow flatters every arm): give --dtype float32 there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import print_table, processor_name, serve_turns, take_turns

ARMS = ("base", "plugin", "static", "dial")
# What a compiled base is compared with; live edits were eager only once.
EAGER = "eager"
CHOICES = ({}, {"mote": "set"}, {"mote": "set", "mote_strength": 0.5})


def run_arm(job: dict) -> None:
    """In a process of its own: load, then answer the same prompts turn after turn."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        job["folder"],
        dtype=job["dtype"],
        max_model_len=512,
        max_num_seqs=64,
        seed=0,
        enforce_eager=not job["compiled"] or job["arm"] == EAGER,
        disable_log_stats=True,
        enable_prefix_caching=False,  # the second turn would find all of the first one's prompts
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

    def answer() -> int:
        outputs = llm.chat(chats, params, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in outputs)

    serve_turns(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--dtype", default="auto", help="of the engine [default: the checkpoint's]")
    parser.add_argument("--arms", help="those to run, separated by commas [default: all]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument(
        "--scratch", type=Path, help="where variants are written; files are linked on the model's disk only"
    )
    arguments = parser.parse_args()
    arms = (*ARMS, EAGER) if arguments.compiled else ARMS
    arms = tuple(arguments.arms.split(",")) if arguments.arms else arms
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folders = dict.fromkeys(("base", "plugin", EAGER), arguments.model)
        words = {
            "static": ["--semantics", "drop-renorm", "--suppress", arguments.set],
            "dial": ["--dial", f"set={arguments.set}"],
        }
        for arm, how in words.items():
            folders[arm] = Path(scratch) / arm
            output = ["--model", arguments.model, "-o", folders[arm]]
            command = [sys.executable, "-m", "ftri.cli.rewrite", *output, *how]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        sizes = {name: getattr(arguments, name) for name in ("compiled", "dtype", "prompts", "max_tokens")}
        jobs = {arm: sizes | {"arm": arm, "folder": str(folders[arm])} for arm in arms}
        # No plugin at all beside the base.
        bare = {arm: {"VLLM_PLUGINS": "none"} for arm in ("base", EAGER)}
        found = take_turns(__file__, jobs, bare, arguments.rounds)
    mode = "compiled" if arguments.compiled else "eager"
    print(f"{processor_name()}, {mode}, dtype {arguments.dtype}, {arguments.rounds} rounds")
    print_table(found, "base")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arm"]:
        run_arm(json.loads(sys.argv[2]))
    else:
        main()
