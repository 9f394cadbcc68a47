"""A server that returns routed experts as vLLM or SGLang does: `python routing_server.py '{"runtime": "vllm", ...}'`.

It prints its port. Settings: layers, first_moe_layer, num_experts, top_k; failures (so many 503 first); fault (none,
twice, short, beyond, text); die_after (exits after so many responses); key; traces (answers with what a trace folder
holds instead of by rule); weights, noise, echoes (log-probabilities of texts, see logprobs_double.py)."""

import base64
import io
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logprobs_double import logprobs

settings: dict[str, Any] = {"runtime": "vllm", "name": "R1", "failures": 0, **json.loads(sys.argv[1])}
lock = threading.Lock()
seen = {"requests": 0, "running": 0, "most": 0, "responses": 0}
# Spaces and letters in the tiny tokenizer's ids: what is written does not matter, only that it is the same again.
WORDS = [70, 71, 72, 73]


def completion(prompt: list[int], max_tokens: int) -> list[int]:
    """The tokens that the rule writes after a prompt."""
    return [WORDS[(sum(prompt) + place) % len(WORDS)] for place in range(min(max_tokens, 2 + sum(prompt) % 5))]


def routing(tokens: list[int]) -> np.ndarray:
    """[T, layers, K]: token t of layer l selects the experts (7 t + l + 5 j) mod E, in falling order; dense layers: 0."""
    layers, experts, top_k = settings["layers"], settings["num_experts"], settings["top_k"]
    token, layer, slot = np.meshgrid(np.array(tokens), np.arange(layers), np.arange(top_k), indexing="ij")
    rows = np.sort((token * 7 + layer + 5 * slot) % experts, axis=2)[:, :, ::-1].copy()
    rows[:, : settings["first_moe_layer"]] = 0
    return rows


def answer(prompt: list[int], max_tokens: int) -> tuple[str, list[int], str, np.ndarray]:
    """Text, tokens, reason and routing [T, layers, K] of a response."""
    if settings.get("traces"):
        from ftri.traces.reader import TraceReader

        for record in TraceReader(settings["traces"]):
            if record.prompt_token_ids == prompt:
                rows = np.zeros((record.num_rows, settings["layers"], settings["top_k"]), np.int64)
                rows[:, settings["first_moe_layer"] :] = record.experts[:, :, ::-1]
                return record.text, record.completion_token_ids, record.finish_reason, rows
        raise AssertionError("no such prompt in the traces")
    tokens = completion(prompt, max_tokens)
    rows = routing([*prompt, *tokens][:-1])
    if settings.get("fault") == "twice":
        rows[-1] = 3
    elif settings.get("fault") == "short":
        rows = rows[:-1]
    elif settings.get("fault") == "beyond":
        rows[0, -1, 0] = settings["num_experts"]
    return (
        "".join(" abc"[token % 4] for token in tokens),
        tokens,
        "length" if len(tokens) == max_tokens else "stop",
        rows,
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.send(200, seen)
        elif self.path == "/v1/models":
            self.send(200, {"data": [{"id": settings["name"]}]})
        elif self.path == "/get_model_info" and settings["runtime"] == "sglang":
            self.send(200, {"model_path": settings["name"]})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("logprobs"):
            if "weights" not in settings or (body.get("echo") and not settings.get("echoes", True)):
                self.send(400, {"error": {"message": "not supported"}})
            else:
                given = logprobs(body["prompt"], settings["weights"], settings.get("noise", 0), echoes="echo" in body)
                self.send(200, {"choices": [given]})
            return
        with lock:
            seen["requests"] += 1
            seen["running"] += 1
            seen["most"] = max(seen["most"], seen["running"])
            failing = seen["requests"] <= settings["failures"]
        try:
            if settings.get("key") and self.headers.get("Authorization") != f"Bearer {settings['key']}":
                self.send(401, {"error": {"message": "wrong key"}})
            elif failing:
                self.send(503, {"error": {"message": "overloaded"}})
            elif settings["runtime"] == "sglang" and self.path == "/generate":
                self.send(200, self.sglang(body))
            elif settings["runtime"] == "vllm" and self.path == "/v1/completions":
                self.send(200, self.vllm(body))
            else:
                self.send(404, {"detail": "Not Found"})
        finally:
            with lock:
                seen["running"] -= 1
                seen["responses"] += not failing
                dead = seen["responses"] == settings.get("die_after")
        if dead:
            os._exit(1)

    def vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        assert (
            body["return_token_ids"] is True
            and body["skip_special_tokens"] is False
            and body["model"] == settings["name"]
        )
        text, tokens, reason, rows = answer(body["prompt"], body["max_tokens"])
        buffer = io.BytesIO()
        np.save(buffer, rows.astype(np.uint8))
        choice: dict[str, Any] = {"text": text, "token_ids": tokens, "finish_reason": reason}
        if settings.get("fault") == "text":
            choice["routed_experts"] = "%%%"
        elif settings.get("fault") != "none":
            choice["routed_experts"] = base64.b64encode(buffer.getvalue()).decode()
        return {"choices": [choice]}

    def sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["return_routed_experts"] is True and "top_p" in body["sampling_params"]
        text, tokens, reason, rows = answer(body["input_ids"], body["sampling_params"]["max_new_tokens"])
        meta: dict[str, Any] = {"finish_reason": {"type": reason}, "completion_tokens": len(tokens)}
        if settings.get("fault") != "none":
            meta["routed_experts"] = base64.b64encode(rows.astype("<i4").tobytes()).decode()
        return {"text": text, "output_ids": tokens, "meta_info": meta}

    def send(self, status: int, document: dict[str, Any]) -> None:
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
