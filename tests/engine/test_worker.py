"""What METok's workers do before vLLM's, without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from metok_vllm.engine import staging
from metok_vllm.engine.worker import EncodingWorker


class Sleeper:
    """Stands for vLLM's worker, whose allocator needs a GPU."""

    def __init__(self) -> None:
        self.levels: list[int] = []

    def sleep(self, level: int = 1) -> None:
        self.levels.append(level)


class Encoding(EncodingWorker, Sleeper):
    pass


def test_sleeping_discards_nothing() -> None:
    """At level 2 vLLM discards all that was loaded with the weights, the towers included."""
    worker = Encoding()
    for level in (0, 1, 2):
        worker.sleep(level)
    worker.sleep()
    assert worker.levels == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("gpu", "given", "used"),
    [
        (True, "auto", staging.CUDA_ENCODING_WORKER),
        (True, "mine.Worker", "mine.Worker"),
        (False, "auto", "auto"),
    ],
)
def test_stage_1_alone_has_its_worker_on_a_gpu(
    gpu: bool, given: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cuda_alike=lambda: gpu)
    monkeypatch.setattr(staging, "current_platform", platform)
    config = SimpleNamespace(parallel_config=SimpleNamespace(worker_cls=given))
    staging.encode_only(config)
    assert config.parallel_config.worker_cls == used
