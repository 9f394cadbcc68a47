"""The class that vLLM mixes into its workers (`worker_extension_cls`), so that an unmodified engine can be recorded
and edited; the engine calls its methods on every rank by `collective_rpc`.

Arguments and answers are plain lists, numbers, strings and bytes, which every transport of vLLM carries.
"""

from __future__ import annotations

from typing import Any


class MoteWorkerExtension:
    """Methods added to a vLLM worker; all names begin with `mote_`, as they share the worker's namespace."""

    def mote_install(self, record: bool, num_choices: int) -> dict[str, Any]:
        """Attach, when `record`, the recorder; tells what this rank holds. `num_choices`: the ids that a router chooses from."""
        from ftri.worker.routers import describe

        worker: Any = self
        worker.mote_recorder = None
        answer: dict[str, Any] = describe(worker.model_runner.get_model())
        if record:
            from ftri.worker.record import RoutingRecorder

            worker.mote_recorder = RoutingRecorder(worker.model_runner, worker.vllm_config, num_choices)
            answer |= {"table_size_bytes": worker.mote_recorder.table.nbytes}
        return answer

    def mote_take(self, request_ids: list[str], num_rows: list[int]) -> list[bytes | None]:
        """The rows of finished requests, [T, L of this rank, K] each; tensor-parallel ranks route alike, the first speaks."""
        from vllm.distributed.parallel_state import get_tp_group

        worker: Any = self
        if not get_tp_group().is_first_rank:
            return [None] * len(request_ids)
        return worker.mote_recorder.take(request_ids, num_rows)

    def mote_clear(self) -> None:
        """Forget rows that were not taken."""
        worker: Any = self
        worker.mote_recorder.clear()
