"""The class that vLLM mixes into its workers (`worker_extension_cls`), so that an unmodified engine can be recorded; the
engine calls its methods on every rank by `collective_rpc`.

Arguments and answers are plain lists, numbers, strings and bytes, which every transport of vLLM carries.
"""

from __future__ import annotations

from typing import Any

from ftri.worker import internals


class MoteWorkerExtension:
    """Methods added to a vLLM worker; all names begin with `mote_`, as they share the worker's namespace."""

    def mote_install(self, record: bool, num_choices: int, weights_dtype: str | None = None) -> dict[str, Any]:
        """Attach, when `record`, the recorder; tells what this rank holds. `num_choices`: the ids that a router chooses from;
        `weights_dtype`: what the selected experts' weights are kept in, None to keep none."""
        from ftri.worker.routers import describe

        worker: Any = self
        worker.mote_recorder = None
        model = worker.model_runner.get_model()
        answer: dict[str, Any] = describe(model)
        # Tensor-parallel ranks route alike: the first speaks.
        if record and internals.load("get_tp_group")().is_first_rank:
            from ftri.worker.record import RoutingRecorder

            worker.mote_recorder = RoutingRecorder(worker.model_runner, model.mote_rows, num_choices, weights_dtype)
            answer |= {"table_size_bytes": worker.mote_recorder.size_bytes}
        return answer

    def mote_take(self, request_ids: list[str], num_rows: list[int]) -> list[tuple[bytes, bytes | None] | None]:
        """The experts and weights of finished requests, [T, L of this rank, K] each."""
        worker: Any = self
        if worker.mote_recorder is None:
            return [None] * len(request_ids)
        return worker.mote_recorder.take(request_ids, num_rows)

    def mote_clear(self) -> None:
        """Forget rows that were not taken."""
        worker: Any = self
        if worker.mote_recorder is not None:
            worker.mote_recorder.clear()
