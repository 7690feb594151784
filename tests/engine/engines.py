"""vLLM engines in this process: one per configuration, shared by all test modules."""

from __future__ import annotations

import gc
import json
import os
from typing import Any
from unittest import mock

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tests.untrained import MODEL_DIR

# Start-up encodes dummy videos. Small ones have as many tokens and cost a tenth of the time.
SMALL_DUMMIES = {"width": 16, "height": 16}
UNTRAINED = {
    "model": str(MODEL_DIR),
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 8192,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 16,
    "max_logprobs": 20,
    "limit_mm_per_prompt": {"image": 2, "video": {"count": 3, **SMALL_DUMMIES}},
}


class EnginePool:
    """Starts an engine when its configuration is first needed and keeps it until `stop`.

    vLLM's engines share this process's distributed state: ending one breaks the others.
    """

    def __init__(self) -> None:
        self._engines: dict[str, Any] = {}

    def get(self, **settings: Any) -> Any:
        """The `vllm.LLM` with these arguments."""
        from vllm import LLM

        key = json.dumps(settings, sort_keys=True)
        if key not in self._engines:
            self._engines[key] = LLM(**settings)
            _share_groups()
        return self._engines[key]

    def stop(self) -> None:
        # Each shutdown collects garbage twice, a second for each engine; once for all is enough.
        with mock.patch("gc.collect"):
            for engine in self._engines.values():
                engine.llm_engine.engine_core.shutdown()
        self._engines.clear()
        gc.collect()


def _share_groups() -> None:
    """Let a mixture of experts follow: the process's first engine makes the groups of all."""
    from vllm.distributed import parallel_state

    if parallel_state._EP is None:
        parallel_state._EP = parallel_state.get_tp_group()


def core_of(engine: Any) -> Any:
    """vLLM's EngineCore, with the scheduler and the executor."""
    return engine.llm_engine.engine_core.engine_core


def runner_of(engine: Any) -> Any:
    return core_of(engine).model_executor.driver_worker.worker.model_runner


def model_of(engine: Any) -> Any:
    return runner_of(engine).get_model()


def render(engine: Any, prompt: Any) -> Any:
    """The engine's input for one prompt, without reading or filling the processor cache."""
    (rendered,) = engine.llm_engine.renderer.render_cmpl([prompt], skip_mm_cache=True)
    return rendered


def reset_caches(engine: Any) -> None:
    """Empty the processor, encoder and prefix caches."""
    engine.reset_mm_cache()
    engine.reset_prefix_cache()
    engine.llm_engine.reset_encoder_cache()
