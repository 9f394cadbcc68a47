"""The loop that feeds a started vLLM with requests and hands them out as they finish, with their rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ftri.engine.answers import Request
from ftri.engine.edits import ServedChoice
from ftri.engine.errors import EngineError
from ftri.engine.rows import RowReader, Rows
from ftri.prompts.rendering import first_line
from ftri.worker import internals
from ftri.worker.request import EDIT_ARGUMENT

# Whether a request's text so far, known by its label, decides all that is wanted of it.
Ends = Callable[[Any, str], bool]
# A request's label, what vLLM made of it, and its rows where they are recorded.
Finished = tuple[Any, Any, Rows | None]


class RunLoop:
    """One vLLM engine's requests; they are numbered over its whole life."""

    def __init__(self, llm: Any, rows: RowReader | None, in_flight_limit: int) -> None:
        """`llm`: vLLM's LLMEngine; `rows`: what reads the finished requests' rows, where they are recorded; no more than
        `in_flight_limit` requests are handed to vLLM at a time."""
        self._llm, self.rows, self._in_flight_limit = llm, rows, in_flight_limit
        self._next_request = 0
        self.is_dead = False  # vLLM failed while it ran, so that nothing more can be asked of it

    def run(self, requests: Iterator[Request], until: Ends | None = None) -> Iterator[list[Finished]]:
        """Feed requests and yield them as they finish, those of one step together.

        Outputs that `until` ends are yielded as they are, unfinished; vLLM is told to drop them.

        Raises:
            EngineError: vLLM refuses a request, dies, or returns rows that cannot be.
        """
        labels: dict[str, Any] = {}
        internal_ids: dict[str, str] = {}
        if self.rows is not None:
            self.rows.clear()
        try:
            while True:
                for request in itertools.islice(requests, self._in_flight_limit - len(labels)):
                    request_id = str(self._next_request)
                    self._next_request += 1
                    internal_ids[request_id] = self._add(request_id, request)
                    labels[request_id] = request.label
                if not labels:
                    return
                outputs = self._step()
                finished = [output for output in outputs if output.finished]
                decided = [
                    output
                    for output in outputs
                    if until is not None
                    and not output.finished
                    and until(labels[output.request_id], output.outputs[0].text)
                ]
                finished += decided
                if not finished:
                    continue
                rows: list[Rows | None] = [None] * len(finished)
                if self.rows is not None:
                    rows[:] = self.rows.read(finished, internal_ids)
                if decided:
                    self._llm.abort_request([output.request_id for output in decided])
                for output in finished:
                    del internal_ids[output.request_id]
                yield [
                    (labels.pop(output.request_id), output, of_output)
                    for output, of_output in zip(finished, rows, strict=True)
                ]
        finally:
            # The caller stopped early, or a request was refused; an engine that died can only fail again, and its second
            # failure would hide the first.
            if labels and not self.is_dead:
                self._llm.abort_request(list(labels))
                while self._llm.has_unfinished_requests():
                    self._llm.step()

    def _add(self, request_id: str, request: Request) -> str:
        """Hand a request with its edit to vLLM; returns the id that its workers know it by."""
        try:
            prompt = internals.load("TokensPrompt")(prompt_token_ids=list(request.token_ids))
            if isinstance(request.edit, ServedChoice):
                request.params.extra_args = request.edit.as_arguments()  # vLLM's front end keeps its caches apart
            elif request.edit is not None:
                request.params.extra_args = {EDIT_ARGUMENT: request.edit.as_argument()}
                # Keys and values depend on the edit: without this, another edit's prefix would be taken from the cache.
                prompt["cache_salt"] = request.edit.key
            internal_id: str = self._llm.add_request(request_id, prompt, request.params)
        except (ValueError, internals.load("VLLMError")) as error:
            raise EngineError(f"prompt {request.name!r} cannot be run: {first_line(error)}") from error
        return internal_id

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self._llm.step()
        except (RuntimeError, internals.load("VLLMError")) as error:
            self.is_dead = True
            raise EngineError(
                f"vLLM failed while it ran: {first_line(error)}; -v shows what it logs, and the same command goes on from here"
            ) from error
        return outputs
