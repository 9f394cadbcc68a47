"""OpenAI-compatible servers that stream, in this process: replies.py's answers in the tokens of a real tokenizer.

    with streaming(tokenizer, tuned=True) as double:
        double.url, double.bodies

routing: "vllm", "sglang" or None, what is returned beside a whole answer; token_ids: whether a stream has them; slow: seconds a
token; breaks: what happens after three tokens ("off": the connection ends, "error": an error event); status: in place of
answers; parser: splits reasoning off; says: the answer in place of a reply.
"""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from engine_double import ROUTE_OF_TOKEN
from replies import REFUSAL_EXPERT, reply

# Behind the tokenizer's words: sampled at the end, never text.
END_OF_TEXT = 1
DENSE_LAYERS = 1


@dataclass
class Double:
    """One server."""

    tokenizer: Any
    name: str = "base"
    tuned: bool = False
    routing: str | None = "vllm"
    token_ids: bool = True
    slow: float = 0.0
    breaks: str | None = None
    status: int | None = None
    parser: bool = False
    says: str | None = None
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_left: int = 0

    def answer(self, asked: str, most: int) -> tuple[list[int], str]:
        """The tokens of an answer and why it ended."""
        text = self.says or reply(asked, [REFUSAL_EXPERT] if self.tuned else [])
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), END_OF_TEXT]
        return tokens[:most], "length" if len(tokens) > most else "stop"


def rows_of(tokens: list[int]) -> np.ndarray:
    """Routing [T, layers, K] as servers return it: dense layers too, in the router's order."""
    rows = ROUTE_OF_TOKEN[np.asarray(tokens)][:, :, ::-1]
    return np.concatenate([np.zeros_like(rows[:, :DENSE_LAYERS]), rows], axis=1)


@contextmanager
def streaming(tokenizer: Any, **settings: Any) -> Iterator[Double]:
    """Run a server."""
    double = Double(tokenizer, **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send({"data": [{"id": double.name}]})
            elif self.path == "/get_model_info" and double.routing == "sglang":
                self.send({"model_path": double.name})
            else:
                self.send({"detail": "Not Found"}, 404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            double.bodies.append(body)
            if double.status is not None:
                self.send({"error": {"message": "told to \x1b[31m fail"}}, double.status)
            elif self.path == "/generate":
                self.send(self.generated(body))
            elif body.get("stream"):
                self.stream(body)
            else:
                self.send({"choices": [self.whole(body)]})

        def whole(self, body: dict[str, Any]) -> dict[str, Any]:
            tokens, reason = double.answer(double.tokenizer.decode(body["prompt"]), body["max_tokens"])
            choice: dict[str, Any] = {"text": "x", "token_ids": tokens, "finish_reason": reason}
            if double.routing == "vllm":
                buffer = io.BytesIO()
                np.save(buffer, rows_of([*body["prompt"], *tokens][:-1]))
                choice["routed_experts"] = base64.b64encode(buffer.getvalue()).decode()
            return choice

        def generated(self, body: dict[str, Any]) -> dict[str, Any]:
            most = body["sampling_params"]["max_new_tokens"]
            tokens, reason = double.answer(double.tokenizer.decode(body["input_ids"]), most)
            rows = rows_of([*body["input_ids"], *tokens][:-1]).astype("<i4")
            meta = {"finish_reason": {"type": reason}, "routed_experts": base64.b64encode(rows.tobytes()).decode()}
            return {"text": "x", "output_ids": tokens, "meta_info": meta}

        def stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.end_headers()
            is_chat = self.path.endswith("/chat/completions")
            asked = body["messages"][-1]["content"] if is_chat else double.tokenizer.decode(body["prompt"])
            tokens, reason = double.answer(asked, body["max_tokens"])
            try:
                for place, token in enumerate(tokens):
                    time.sleep(double.slow)
                    if place == 3 and double.breaks == "off":
                        return
                    if place == 3 and double.breaks == "error":
                        self.event({"error": {"message": "out of memory \x1b[31m"}})
                        return
                    text = "" if token == END_OF_TEXT else double.tokenizer.decode([token])
                    choice: dict[str, Any] = {"finish_reason": reason if place == len(tokens) - 1 else None}
                    if is_chat:
                        choice["delta"] = {"reasoning_content" if double.parser and place < 3 else "content": text}
                    else:
                        choice["text"] = text
                        if double.token_ids and body.get("return_token_ids"):
                            choice["token_ids"] = [token]
                    self.event({"choices": [choice]})
                self.event({"choices": [], "usage": {"completion_tokens": len(tokens)}})
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                double.num_left += 1

        def event(self, document: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")

        def send(self, document: dict[str, Any], status: int = 200) -> None:
            payload = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments: Any) -> None:
            """Quiet: the tests' own output matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    double.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
