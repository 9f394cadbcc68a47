"""Tells the edit tables what a step is made of, with either of vLLM's model runners.

Model runner V1 calls its `_model_forward` once a step, when the batch is laid out. V2 asks the model for a model state, which
sees requests come and go and every step's layout. A request's edit stands in its sampling parameters' `extra_args`, which
vLLM hands through to the workers untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from ftri.worker import internals
from ftri.worker.request import EDIT_ARGUMENT, RequestEdit
from ftri.worker.tables import EditTables

Edit = tuple[Hashable, RequestEdit] | None
# A request's extra_args -> its edit.
ReadEdit = Callable[[Mapping[str, Any]], Edit]


def read_live_edit(extra_arguments: Mapping[str, Any]) -> Edit:
    """The edit that ftri's engine gave a request, None for the base."""
    given = extra_arguments.get(EDIT_ARGUMENT)
    return None if given is None else (given["key"], RequestEdit.from_plain(given["edit"]))


class Requests:
    """The edits of the requests that a worker knows, and the tables that each step is written to."""

    def __init__(self, tables: EditTables, read: ReadEdit) -> None:
        """`read` finds the edit in a request's extra_args."""
        self.tables = tables
        self._read = read
        self._edits: dict[str, Edit] = {}

    def add(self, request_id: str, sampling_params: Any) -> None:
        """Take a request's edit from its sampling parameters (None for pooling)."""
        arguments = getattr(sampling_params, "extra_args", None)
        self._edits[request_id] = self._read(arguments) if arguments else None

    def remove(self, request_id: str) -> None:
        """Forget a request."""
        self._edits.pop(request_id, None)

    def begin_step(self, request_ids: Sequence[str], counts: Sequence[int]) -> None:
        """Write the tables for a step with so many tokens of each of these requests.

        Raises:
            KeyError: for a request that nobody added, among others that are known.
        """
        if not any(request_id in self._edits for request_id in request_ids):
            request_ids, counts = (), ()  # a dummy batch, which warms up or keeps other ranks company
        self.tables.write_step([self._edits[request_id] for request_id in request_ids], counts)

    def keep(self, request_ids: Mapping[str, Any]) -> None:
        """Make the known requests those of model runner V1's own table, and forget the others."""
        for request_id in self._edits.keys() - request_ids.keys():
            del self._edits[request_id]
        for request_id in request_ids.keys() - self._edits.keys():
            self.add(request_id, request_ids[request_id].sampling_params)


def hook_runner_v1() -> None:
    """Have model runner V1 tell the model's requests of every step; a model without edits is run as before."""
    runner_class = internals.load("GPUModelRunner")
    original = runner_class._model_forward
    if hasattr(original, "mote_original"):
        return

    @functools.wraps(original)
    def model_forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
        requests: Requests | None = getattr(self.get_model(), "mote_requests", None)
        if requests is not None:
            batch_ids = self.input_batch.req_ids
            requests.keep(self.requests)
            starts = self.query_start_loc.np[: len(batch_ids) + 1]
            requests.begin_step(batch_ids, (starts[1:] - starts[:-1]).tolist())
        return original(self, *arguments, **keywords)

    model_forward.mote_original = original  # type: ignore[attr-defined]
    runner_class._model_forward = model_forward


@functools.cache
def editing_state_class(state_class: type) -> type:
    """A subclass of the model state that model runner V2 uses for a model, which tells the model's requests of every step."""

    def add_request(self: Any, req_index: int, new_req_data: Any) -> None:
        self.model.mote_requests.add(new_req_data.req_id, new_req_data.sampling_params)
        state_class.add_request(self, req_index, new_req_data)  # type: ignore[attr-defined]

    def remove_request(self: Any, req_id: str) -> None:
        self.model.mote_requests.remove(req_id)
        state_class.remove_request(self, req_id)  # type: ignore[attr-defined]

    def prepare_inputs(self: Any, input_batch: Any, req_states: Any) -> Any:
        starts = input_batch.query_start_loc_np[: len(input_batch.req_ids) + 1]
        self.model.mote_requests.begin_step(input_batch.req_ids, (starts[1:] - starts[:-1]).tolist())
        return state_class.prepare_inputs(self, input_batch, req_states)  # type: ignore[attr-defined]

    methods = {"add_request": add_request, "remove_request": remove_request, "prepare_inputs": prepare_inputs}
    return type(f"Mote{state_class.__name__}", (state_class,), {**methods, "__doc__": state_class.__doc__})
