"""What METok adds to a worker, reached with `collective_rpc` by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class MetokWorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    model_runner: Any

    def metok_events(self, keys: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The events of videos by their cache key; None for one that is not remembered."""
        stage1 = self.model_runner.get_model().stage1
        return {key: stage1.recall(key) for key in keys}
