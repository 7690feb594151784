"""vLLM's CPU worker with METok's stages. Imported by name, in CPU processes only."""

from __future__ import annotations

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from metok_vllm.engine.refusals import check_runner
from metok_vllm.engine.runner import StagedRunner
from metok_vllm.engine.worker import EncodingWorker


class StagedCPUModelRunner(StagedRunner, CPUModelRunner):
    """vLLM's V1 runner for CPUs with stages."""


class MetokCPUWorker(EncodingWorker, CPUWorker):
    """Named by a string in vLLM's configuration."""

    def init_device(self) -> None:
        super().init_device()
        kind = type(self.model_runner)
        name = f"{kind.__module__}.{kind.__qualname__}"
        check_runner(name, supported=kind is CPUModelRunner)
        # vLLM has no hook for the runner here, as its CUDA worker has.
        self.model_runner.__class__ = StagedCPUModelRunner
        self.model_runner.init_metok()
