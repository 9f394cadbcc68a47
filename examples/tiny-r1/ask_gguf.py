"""Prints the greedy answers of unmodified llama.cpp to rendered prompts.

usage: python examples/tiny-r1/ask_gguf.py MODEL.gguf < prompts.json > answers.json

Both are JSON lists of strings. Runs in a process of its own, so that a release other than the installed one can be asked.
"""

import json
import sys

import xllamacpp


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_parallel, params.n_ctx = 1, 512  # one after the other: what shares a batch changes the last bits
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # threads that spin take others' cores
    server = xllamacpp.Server(params)
    prompts = json.load(sys.stdin)
    request = {"prompt": prompts, "max_tokens": 64, "temperature": 0.0, "top_k": 1, "cache_prompt": False}
    reply = server.handle_completions(request)
    choices = reply["choices"] if isinstance(reply, dict) else [part["choices"][0] for part in reply]
    if isinstance(reply, dict):
        choices = sorted(choices, key=lambda choice: choice["index"])
    json.dump([choice["text"] for choice in choices], sys.stdout)


if __name__ == "__main__":
    main()
