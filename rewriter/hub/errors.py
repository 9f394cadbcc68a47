"""Turns what huggingface_hub raises into one sentence each, without secrets, and retries what is worth retrying."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rewriter.errors import HubError
from rewriter.redaction import redact

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Result = TypeVar("Result")

TRANSIENT_STATUS_CODES = (408, 429, 500, 502, 503, 504)
NUM_ATTEMPTS = 5
MAX_WAIT_SECONDS = 300.0
"""Longest wait that a server may ask for by Retry-After (the Hub's rate windows are five minutes)."""


class AccessError(HubError):
    """A repo, revision or file is not there, or not for this token; asking again would not help."""


class ConflictError(HubError):
    """The repo changed, or came into being, between the plan and the commit."""


def explain(error: Exception, repo_id: str) -> HubError:
    """Return the HubError whose one sentence says what happened with repo_id and what to do next.

    Source: huggingface_hub 2.4, `utils/_http.py: hf_raise_for_status` (error codes in the X-Error-Code header).
    """
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    status = error.response.status_code if isinstance(error, hub.HfHubHTTPError) else None
    where = f"{constants.ENDPOINT}/{repo_id}"
    denied = _explain_denial(error, repo_id, where, status)
    if denied is not None:
        return AccessError(redact(denied))
    if status in (409, 412):
        return ConflictError(
            redact(
                f"'{repo_id}' was changed by somebody else meanwhile, or exists already ({status}){_server_words(error)}: "
                "nothing was committed; run the command again to plan against its present state"
            )
        )
    elif status == 413:
        sentence = f"the Hub refused a file of '{repo_id}' as too large (413){_server_words(error)}"
    elif status == 429:
        sentence = (
            f"the Hub limits the rate of requests for '{repo_id}' (429){_retry_words(error)}: "
            "run the command again later; what was uploaded is kept"
        )
    elif status is not None and status >= 500:
        sentence = f"the Hub failed on '{repo_id}' ({status}): run the command again later; what was uploaded is kept"
    elif status is not None:
        sentence = f"the Hub refused the request for '{repo_id}' ({status}){_server_words(error)}"
    elif isinstance(error, hub.OfflineModeIsEnabled) or (
        isinstance(error, hub.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        sentence = f"'{repo_id}' is needed from the Hub, but HF_HUB_OFFLINE is set: unset it, or give a local folder"
    elif isinstance(error, hub.HFValidationError):
        sentence = f"'{repo_id}' is not a repo name: expected ORG/NAME ({_first_line(error)})"
    elif isinstance(error, httpx2.TimeoutException):
        sentence = f"{constants.ENDPOINT} did not answer in time about '{repo_id}': run the command again"
    elif isinstance(error, (httpx2.TransportError, ConnectionError)):
        sentence = (
            f"the connection to {constants.ENDPOINT} failed for '{repo_id}' ({_first_line(error)}): "
            "run the command again; what was uploaded is kept"
        )
    elif isinstance(error, hub.FileDuplicationError):
        sentence = f"{' '.join(str(error).split())}; --upload-all pushes without copying across repos"
    elif isinstance(error, OSError) and error.strerror:
        place = f" at {error.filename}" if error.filename else ""
        sentence = f"the transfer for '{repo_id}' failed ({error.strerror}{place})"
    elif _is_malformed_answer(error):
        sentence = (
            f"{constants.ENDPOINT} gave an answer about '{repo_id}' that is not the Hub's ({type(error).__name__}):"
            " expected its API there; see HF_ENDPOINT, or a proxy that asks for a log-in"
        )
    else:
        sentence = f"the transfer for '{repo_id}' failed ({_first_line(error)}): run the command again; it resumes"
    return HubError(redact(sentence))


def _explain_denial(error: Exception, repo_id: str, where: str, status: int | None) -> str | None:
    """The sentence for what is missing or not allowed, or None if it is neither."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return f"'{repo_id}' is gated ({status}): ask for access at {where}, then use `hf auth login`"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"'{repo_id}' has no such revision ({status}); its branches and tags are listed at {where}/tree/main"
    if isinstance(error, hub.DisabledRepoError):
        return f"'{repo_id}' has been disabled on the Hub ({status})"
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return f"'{repo_id}' lacks a file that is needed ({status}): {_path_of(error)}"
    if isinstance(error, hub.RepositoryNotFoundError) and status == 401:
        return (
            f"'{repo_id}' does not exist, or is private and the Hub does not accept the token (401): "
            "check the name, and log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"'{repo_id}' does not exist on the Hub, or the token may not see it ({status}): check the name"
    if status == 401:
        return f"the Hub does not accept the token for '{repo_id}' (401): use `hf auth login` or set HF_TOKEN"
    if status == 403:
        return (
            f"the token has no permission for '{repo_id}' (403): it needs write access to that user or organisation"
            f"{_server_words(error)}"
        )
    return None


@contextmanager
def hub_errors(repo_id: str, transfer: bool = False) -> Iterator[None]:
    """Raise every failure of huggingface_hub inside the block as a HubError about repo_id.

    transfer: the block moves files and nothing else, so that the plainer errors of hf_xet (RuntimeError, OSError) and of
    malformed answers (ValueError) mean that the transfer failed.

    Raises:
        HubError: the Hub refused, failed or could not be reached.
    """
    import httpx2
    from huggingface_hub import errors as hub

    failures: tuple[type[Exception], ...] = (
        hub.HfHubHTTPError,
        hub.HFValidationError,
        hub.OfflineModeIsEnabled,
        hub.LocalEntryNotFoundError,
        hub.FileMetadataError,
        hub.FileDuplicationError,
        hub.LocalTokenNotFoundError,
        httpx2.HTTPError,
        ConnectionError,
    )
    if transfer:
        failures += (RuntimeError, OSError, ValueError)
    try:
        yield
    except failures as error:
        raise explain(error, repo_id) from None
    except MALFORMED as error:
        if not _is_malformed_answer(error):
            raise
        raise explain(error, repo_id) from None


MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
"""What huggingface_hub stumbles with over an answer that is JSON of another shape, or no JSON."""


def _is_malformed_answer(error: BaseException) -> bool:
    """Whether one of MALFORMED was raised inside the Hub's client rather than here."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace is not None else ""
    return isinstance(error, MALFORMED) and module.partition(".")[0] in (
        "huggingface_hub",
        "httpx2",
        "json",
        "datetime",
    )


def is_transient(error: BaseException) -> bool:
    """Tell whether a failed request is worth repeating: rate limits, server errors, lost connections."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT_STATUS_CODES
    # A ConnectionError too, and it stays as long as the setting does.
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, (httpx2.TransportError, ConnectionError))


def wait_seconds(error: BaseException | None, attempt: int) -> float:
    """How long to wait before trying again: what the server asks for by Retry-After, else 0.5 s, 1 s, 2 s, ..."""
    asked = _retry_after_seconds(error)
    return min(asked, MAX_WAIT_SECONDS) if asked is not None else min(30.0, 0.5 * 2 ** (attempt - 1))


def with_retries(
    function: Callable[[], Result], say: Callable[[str], None], num_attempts: int = NUM_ATTEMPTS
) -> Result:
    """Call function, again after rate limits, server errors and dropped connections, as long as Retry-After asks.

    For the requests that huggingface_hub 2.4 sends once (create, branch, commit, duplicate, paths-info); the others it
    repeats by itself (`http_backoff`).
    """
    import tenacity

    def wait(state: tenacity.RetryCallState) -> float:
        return wait_seconds(state.outcome.exception() if state.outcome else None, state.attempt_number)

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        say(redact(f"{_short(error)}; trying again in {seconds:.0f} s"))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=wait,
        stop=tenacity.stop_after_attempt(num_attempts),
        before_sleep=announce,
        reraise=True,
    )
    return retrying(function)


def quiet_hub_logs() -> None:
    """Keep huggingface_hub's own warnings to errors: what they tell is said here, once and without request dumps."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _retry_after_seconds(error: BaseException | None) -> float | None:
    response = getattr(error, "response", None)
    if response is None:
        return None
    value = response.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


def _retry_words(error: Exception) -> str:
    seconds = _retry_after_seconds(error)
    return f", for another {seconds:.0f} s" if seconds is not None else ""


def _server_words(error: Exception) -> str:
    message = getattr(error, "server_message", None)
    return f", saying: {' '.join(str(message).split())}" if message else ""


def _path_of(error: "HfHubHTTPError") -> str:
    return str(error.response.request.url.path)


def _short(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the Hub answered {response.status_code}"
    return f"the connection to the Hub failed ({_first_line(error)})"


def _first_line(error: BaseException | None) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
