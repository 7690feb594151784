"""What METok adds to a worker: the staged runner, and calls reached with `collective_rpc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger

from metok_vllm.engine.runner import adopt

logger = init_logger("vllm.metok")


class EncodingWorker:
    """Mixed in before vLLM's worker of a platform."""

    model_runner: Any

    def sleep(self, level: int = 1) -> None:
        """As vLLM's, but nothing is thrown away: loading the weights again would not bring back
        the alignment towers, which are no part of the model's."""
        if level > 1:
            logger.warning(
                "METok sleeps at level 1 in place of %d: the weights wait in host memory.", level
            )
        super().sleep(min(level, 1))  # type: ignore[misc]


class StagedWorker(EncodingWorker):
    """The same with stages 2 and 3."""

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        self.model_runner = adopt(self.model_runner)


class MetokWorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    model_runner: Any

    def metok_events(self, keys: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The events of videos by their cache key; None for one that is not remembered."""
        stage1 = self.model_runner.get_model().stage1
        return {key: stage1.recall(key) for key in keys}

    def metok_books(self) -> dict[str, Any] | None:
        """The evictor's books as this worker knows them; None where no stage needs one."""
        books = getattr(self.model_runner, "metok_books", None)
        return None if books is None else books()
