"""vLLM's CUDA worker with METok's stages. Imported by name, in CUDA processes only."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from metok_vllm.engine.refusals import check_runner
from metok_vllm.engine.runner import StagedRunner
from metok_vllm.engine.worker import EncodingWorker


class StagedGPUModelRunner(StagedRunner, GPUModelRunner):
    """vLLM's V1 runner for GPUs with stages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_metok()


class MetokCUDAWorker(EncodingWorker, Worker):
    """Named by a string in vLLM's configuration."""

    def _make_model_runner(self) -> Any:
        check_runner("the V2 model runner", supported=not self.use_v2_model_runner)
        return StagedGPUModelRunner(self.vllm_config, self.device)


class MetokEncodingCUDAWorker(EncodingWorker, Worker):
    """For stage 1 alone. Named by a string in vLLM's configuration."""
