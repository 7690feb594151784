"""vLLM's CUDA worker with METok's stages. Imported by name, in CUDA processes only."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from metok_vllm.engine.worker import EncodingWorker, StagedWorker


class MetokCUDAWorker(StagedWorker, Worker):  # type: ignore[misc]
    """Workers are named by a string in vLLM's configuration."""


class MetokEncodingCUDAWorker(EncodingWorker, Worker):  # type: ignore[misc]
    """For stage 1 alone."""
