"""vLLM's CPU worker with METok's stages. Imported by name, in CPU processes only."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from metok_vllm.engine.worker import StagedWorker


class MetokCPUWorker(StagedWorker, CPUWorker):  # type: ignore[misc]
    """Workers are named by a string in vLLM's configuration."""
