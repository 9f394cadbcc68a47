"""An OpenAI-compatible server that answers by rule and fails as it is told: `python server.py PORT '{"name": "base", ...}'`.

Settings: name; tuned (suppresses refusals); key (401 without it); failures (statuses to answer first, by path);
retry_after; die_after (exits after so many completions); judge (ratings by rule, or "nonsense"); parser (splits
reasoning off); slow (seconds per answer); completions ("ids": prompts are tokens, not bytes); template (tokens of the
probe at /tokenize); root (what the model was loaded from); says (the text of every completion); weights, noise, echoes (log-
probabilities of texts, see logprobs_double.py).
Only the standard library, since every test starts one.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from replies import REFUSAL_EXPERT, reply

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logprobs_double import logprobs

settings: dict[str, Any] = {"name": "base", "failures": {}, **json.loads(sys.argv[2])}
suppressed = [REFUSAL_EXPERT] if settings.get("tuned") else []
lock = threading.Lock()
seen = {"completions": 0, "logprobs": 0, "running": 0, "most": 0}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.send(200, seen)
        elif not self.fails():
            self.send(200, {"object": "list", "data": [{"id": settings["name"], "root": settings.get("root")}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("logprobs"):
            seen["logprobs"] += 1
            if "weights" not in settings or (body.get("echo") and not settings.get("echoes", True)):
                self.refuse(400, "not supported")
            else:
                given = logprobs(body["prompt"], settings["weights"], settings.get("noise", 0), echoes="echo" in body)
                self.send(200, {"choices": [given]})
            return
        if self.fails():
            return
        if self.path == "/tokenize":
            if "template" in settings:
                self.send(200, {"tokens": settings["template"]})
            else:
                self.refuse(404, "Not Found")
            return
        count()
        if body["model"] != settings["name"]:
            self.refuse(404, f"The model `{body['model']}` does not exist.")
        elif self.path == "/v1/completions":
            prompt = body["prompt"]
            # "ids": the prompt is in the tokens of a real tokenizer, whose text the double does not know.
            text = str(prompt) if settings.get("completions") == "ids" else bytes(prompt).decode()
            self.send(
                200, {"choices": [{"text": settings.get("says") or reply(text, suppressed), "finish_reason": "stop"}]}
            )
        else:
            self.send(200, {"choices": [{"message": message(body["messages"]), "finish_reason": "stop"}]})

    def fails(self) -> bool:
        if settings.get("key") and self.headers.get("Authorization") != f"Bearer {settings['key']}":
            self.refuse(401, "Incorrect API key provided")
            return True
        with lock:
            planned = settings["failures"].get(self.path, [])
            status = planned.pop(0) if planned else None
        if status is not None:
            self.refuse(status, "told to fail")
        return status is not None

    def refuse(self, status: int, words: str) -> None:
        headers = {"Retry-After": str(settings["retry_after"])} if status == 429 and "retry_after" in settings else {}
        self.send(status, {"error": {"message": words}}, headers)

    def send(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet: the tests' own output matters."""


def count() -> None:
    with lock:
        seen["running"] += 1
        seen["most"] = max(seen["most"], seen["running"])
    time.sleep(settings.get("slow", 0.001))
    with lock:
        seen["running"] -= 1
        seen["completions"] += 1
        if seen["completions"] == settings.get("die_after"):
            os._exit(1)


def message(messages: list[dict[str, str]]) -> dict[str, str]:
    asked = messages[-1]["content"]
    if settings.get("judge"):
        return {"content": judge(asked)}
    text = reply(asked, suppressed)
    if settings.get("parser"):
        thinking, _, answer = text.removeprefix("<think>").partition("</think>")
        return {"content": answer.strip(), "reasoning_content": thinking}
    return {"role": "assistant", "content": text}


def judge(asked: str) -> str:
    if settings["judge"] == "nonsense":
        return "As a judge I had a lovely day at the seaside."
    if settings["judge"] == "sometimes" and "question one" in asked:
        return "No idea."
    return f"The answer is fair. Rating: [[{4 if 'I am sorry' in asked else 8}]]"


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()
