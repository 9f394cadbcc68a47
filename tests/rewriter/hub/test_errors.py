"""What is said of failures: no secrets, and waits as long as the server asks."""

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from rewriter.errors import HubError
from rewriter.hub.errors import AccessError, ConflictError, explain, hub_errors, wait_seconds, with_retries
from rewriter.redaction import redact


def response(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://huggingface.co/api/models/a/b/commit/main")
    answer = httpx2.Response(
        status, headers={key.replace("_", "-"): value for key, value in headers.items()}, request=request
    )
    return HfHubHTTPError(f"{status} error", response=answer, server_message="because")


def test_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    text = (
        "an-unusual-token hf_abcdefGHIJKL012345 Authorization: Bearer abc.def "
        "(https://cdn.example.org/x?Signature=abc&Key=d) https://user:word@host/path"
    )
    cleaned = redact(text)
    assert cleaned == ("<token> <token> Authorization: Bearer <token> (https://cdn.example.org/x) https://host/path")


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AccessError), (403, AccessError), (409, ConflictError), (412, ConflictError)]
)
def test_kinds_of_refusals(status: int, kind: type[HubError]) -> None:
    assert type(explain(response(status), "a/b")) is kind


@pytest.mark.parametrize("status", [400, 401, 403, 408, 409, 412, 413, 418, 429, 500, 502, 503])
def test_every_status_is_one_line_with_the_repo_and_the_status(status: int) -> None:
    sentence = str(explain(response(status), "a/b"))
    assert "'a/b'" in sentence and str(status) in sentence and "\n" not in sentence


def test_other_failures_are_explained_too() -> None:
    assert "HF_HUB_OFFLINE is set" in str(explain(OfflineModeIsEnabled("x"), "a/b"))
    assert "did not answer in time" in str(explain(httpx2.ReadTimeout("x"), "a/b"))
    assert "No space left on device at /x" in str(explain(OSError(28, "No space left on device", "/x"), "a/b"))
    with pytest.raises(HubError, match="it resumes"), hub_errors("a/b", transfer=True):
        raise RuntimeError("Task error")
    with pytest.raises(RuntimeError), hub_errors("a/b"):
        raise RuntimeError("a mistake in the program is not the Hub's")


def test_waits_follow_the_server_within_limits() -> None:
    assert wait_seconds(response(429, Retry_After="7"), 1) == 7
    assert wait_seconds(response(429, Retry_After="100000"), 1) == 300
    assert wait_seconds(response(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), 1) == 0.5
    assert [wait_seconds(response(503), attempt) for attempt in (1, 2, 3, 9)] == [0.5, 1, 2, 30]


def test_only_what_may_pass_is_tried_again() -> None:
    said: list[str] = []
    answers = [response(503, Retry_After="0"), httpx2.ConnectError("refused"), None]

    def ask() -> str:
        failure = answers.pop(0)
        if failure is not None:
            raise failure
        return "done"

    assert with_retries(ask, said.append) == "done"
    assert said == [
        "the Hub answered 503; trying again in 0 s",
        "the connection to the Hub failed (refused); trying again in 1 s",
    ]
    answers[:] = [response(403), None]
    with pytest.raises(HfHubHTTPError):
        with_retries(ask, said.append)
    assert len(answers) == 1


def test_a_set_offline_mode_is_not_tried_again():
    asked, said = [], []

    def ask():
        asked.append(1)
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE")

    with pytest.raises(OfflineModeIsEnabled):
        with_retries(ask, said.append)
    assert len(asked) == 1 and said == []
