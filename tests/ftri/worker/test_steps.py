"""Both of vLLM's model runners tell the tables the same of a step; V2, which has no CPU build, by doubles of what it calls."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ftri.worker.request import EDIT_ARGUMENT, RequestEdit
from ftri.worker.steps import Requests, editing_state_class, read_live_edit
from ftri.worker.tables import EditTables


class StateDouble:
    """What model runner V2 calls of a model state."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[str] = []

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        self.calls.append(f"add {new_req_data.req_id}")

    def remove_request(self, req_id: str) -> None:
        self.calls.append(f"remove {req_id}")

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, int]:
        self.calls.append("prepare")
        return {"positions": 1}


def make_requests() -> Requests:
    return Requests(EditTables([3], 8, 2, 4, 64, torch.device("cpu"), False), read_live_edit)


def params(edit: RequestEdit | None) -> Any:
    return SimpleNamespace(
        extra_args=None if edit is None else {EDIT_ARGUMENT: {"key": repr(edit), "edit": edit.as_plain()}}
    )


def batch(*requests: tuple[str, int]) -> Any:
    starts = np.cumsum([0, *(count for _, count in requests)])
    # Model runner V2's buffers are longer than the batch.
    return SimpleNamespace(req_ids=[name for name, _ in requests], query_start_loc_np=np.append(starts, [99, 99]))


def test_model_runner_v2_s_state_writes_every_step() -> None:
    requests = make_requests()
    state = editing_state_class(StateDouble)(SimpleNamespace(mote_requests=requests))
    first, second = RequestEdit(factor=[(3, 1, 0.0)]), RequestEdit(factor=[(3, 2, 0.5)])
    for name, edit in (("a", first), ("b", None), ("c", second)):
        state.add_request(0, SimpleNamespace(req_id=name, sampling_params=params(edit)))
    assert state.prepare_inputs(batch(("c", 2), ("b", 3), ("a", 1)), None) == {"positions": 1}
    slots = requests.tables.slots[:8].tolist()
    assert (
        slots[0] == slots[1] != 0 and slots[2:5] == [0, 0, 0] and slots[5] not in (0, slots[0]) and slots[6:] == [0, 0]
    )
    factor = requests.tables.factor[0]
    assert factor[slots[0], 2] == 0.5 and factor[slots[5], 1] == 0.0
    state.remove_request("a")
    state.prepare_inputs(batch(("b", 2)), None)
    assert not requests.tables.slots.any()
    # A batch that warms up has requests that nobody added; a mixture of both cannot be.
    state.prepare_inputs(batch(("_warm_up", 5)), None)
    with pytest.raises(KeyError):
        state.prepare_inputs(batch(("b", 1), ("a", 1)), None)
    assert state.calls == ["add a", "add b", "add c", "prepare", "remove a", "prepare", "prepare"]


def test_model_runner_v1_s_table_is_followed() -> None:
    requests = make_requests()
    edit = RequestEdit(factor=[(3, 1, 0.0)])
    known = {"a": SimpleNamespace(sampling_params=params(edit)), "b": SimpleNamespace(sampling_params=None)}
    requests.keep(known)
    requests.begin_step(["b", "a"], [2, 2])
    assert (requests.tables.slots[:4] != 0).tolist() == [False, False, True, True]
    # An id that comes again, after its request was let go, is another request.
    requests.keep({})
    requests.keep({"a": SimpleNamespace(sampling_params=params(None))})
    requests.begin_step(["a"], [3])
    assert not requests.tables.slots.any()
