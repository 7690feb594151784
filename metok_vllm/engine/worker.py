"""What METok adds to a worker of vLLM, and calls reached with `collective_rpc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import WorkerSurface
else:
    WorkerSurface = object

logger = init_logger("vllm.metok")


class EncodingWorker(WorkerSurface):
    """Mixed in before vLLM's worker of a platform."""

    def sleep(self, level: int = 1) -> None:
        """As vLLM's, but at most level 1: level 2 discards the weights, and reloading them would
        not restore the alignment towers, which are no part of the model's weights."""
        if level > 1:
            logger.warning(
                "METok sleeps at level 1 instead of %d: the weights stay in host memory.", level
            )
        super().sleep(min(level, 1))


class MetokWorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    model_runner: Any

    def metok_events(self, keys: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The events of videos by their cache key; None for a key that is not stored."""
        events = self.model_runner.get_model().stage1.events
        return {key: events.report(key) for key in keys}

    def metok_evictor_state(self) -> dict[str, Any] | None:
        """Blocks of each request in this worker's block tables; None without stages 2 and 3."""
        state = getattr(self.model_runner, "metok_evictor_state", None)
        return None if state is None else state()
