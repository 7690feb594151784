"""What stages 2 and 3 cannot run with is refused at start-up, by flag and with the reason."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.engine import refusals, staging
from metok_vllm.errors import ConfigError


def vllm_config(**changes: Any) -> SimpleNamespace:
    """The parts of a VllmConfig that the checks read; `changes` are named `part__field`."""
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=None,
            scheduler_cls=None,
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            decode_context_parallel_size=None,
            prefill_context_parallel_size=1,
            use_ubatching=False,
            worker_cls="auto",
        ),
        cache_config=SimpleNamespace(kv_offloading_size=None, kv_sharing_fast_prefill=False),
        model_config=SimpleNamespace(
            multimodal_config=SimpleNamespace(mm_processor_cache_type="lru"),
            hf_config=SimpleNamespace(vision_config=SimpleNamespace()),
            hf_text_config=SimpleNamespace(num_hidden_layers=28),
            runner_type="generate",
        ),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(fuse_attn_quant=False)),
        attention_config=SimpleNamespace(hisparse_config=None),
        watermark_config=None,
        speculative_config=None,
        lora_config=None,
        kv_transfer_config=None,
        ec_transfer_config=None,
    )
    for name, value in changes.items():
        *path, field = name.split("__")
        part = config
        for step in path:
            part = getattr(part, step)
        assert hasattr(part, field)
        setattr(part, field, value)
    return config


CONFLICTS = [
    ({"scheduler_config__disable_hybrid_kv_cache_manager": True}, "--disable-hybrid-kv-cache"),
    ({"speculative_config": object()}, "--speculative-config"),
    ({"lora_config": object()}, "--enable-lora"),
    ({"parallel_config__pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
    ({"parallel_config__decode_context_parallel_size": 2}, "--decode-context-parallel-size"),
    ({"parallel_config__prefill_context_parallel_size": 2}, "--prefill-context-parallel-size"),
    ({"parallel_config__use_ubatching": True}, "--enable-dbo"),
    ({"kv_transfer_config": object()}, "--kv-transfer-config"),
    ({"cache_config__kv_offloading_size": 1.0}, "--kv-offloading-size"),
    ({"ec_transfer_config": object()}, "--ec-transfer-config"),
    ({"cache_config__kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
    (
        {"model_config__multimodal_config__mm_processor_cache_type": "shm"},
        "--mm-processor-cache-type shm",
    ),
    ({"model_config__runner_type": "pooling"}, "--runner pooling"),
    ({"watermark_config": object()}, "--watermark-config"),
    ({"attention_config__hisparse_config": object()}, "hisparse_config in --attention-config"),
    ({"compilation_config__pass_config__fuse_attn_quant": True}, "fuse_attn_quant"),
    ({"scheduler_config__scheduler_cls": "mine.Scheduler"}, "--scheduler-cls"),
    ({"parallel_config__worker_cls": "mine.Worker"}, "--worker-cls"),
]


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(refusals.RUNNER_VARIABLE, raising=False)
    refusals.check(vllm_config())


@pytest.mark.parametrize(("changes", "flag"), CONFLICTS)
def test_a_conflict_names_flag_reason_and_way_out(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], flag: str
) -> None:
    monkeypatch.delenv(refusals.RUNNER_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="stages 2 and 3") as caught:
        refusals.check(vllm_config(**changes))
    message = str(caught.value)
    assert flag in message
    assert "--metok-stages" in message
    assert len(message.partition("stages 2 and 3: ")[2]) > 30


def test_the_second_model_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(refusals.RUNNER_VARIABLE, "1")
    with pytest.raises(ConfigError, match="VLLM_USE_V2_MODEL_RUNNER=1"):
        refusals.check(vllm_config())


def test_staging_fills_in_boundaries_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(refusals.RUNNER_VARIABLE, raising=False)
    config = vllm_config()
    assert staging.stage(METokConfig(), config).pruning_layers == (4, 12, 20)
    assert config.scheduler_config.scheduler_cls == staging.SCHEDULER
    assert config.parallel_config.worker_cls == staging.CPU_WORKER


def test_the_paper_s_boundaries_are_taken_and_their_waste_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(refusals.RUNNER_VARIABLE, "")
    monkeypatch.setattr(staging.logger, "propagate", True)
    with caplog.at_level("INFO"):
        staging.stage(METokConfig(pruning_layers=(3, 10, 19)), vllm_config())
    assert "7.1 % of the KV cache wasted" in caplog.text


@pytest.mark.parametrize(
    ("layers", "message"),
    [((10, 20, 30), "below the decoder's 28"), ((13, 18, 24), "would waste 29 %")],
)
def test_boundaries_that_do_not_fit(layers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        staging.stage(METokConfig(pruning_layers=layers), vllm_config())


def test_a_decoder_too_small_for_stages() -> None:
    small = vllm_config(model_config__hf_text_config=SimpleNamespace(num_hidden_layers=3))
    with pytest.raises(ConfigError, match=r"at least 4 layers.*stages \[1\]"):
        staging.stage(METokConfig(), small)


def test_every_field_that_the_checks_read_exists_in_vllm() -> None:
    """Otherwise a check of a renamed field would pass silently."""
    from vllm.engine.arg_utils import EngineArgs

    from tests.untrained import MODEL_DIR

    real = EngineArgs(model=str(MODEL_DIR), enforce_eager=True).create_engine_config()

    def compare(stand_in: Any, actual: Any, path: str) -> None:
        for name, value in vars(stand_in).items():
            assert hasattr(actual, name), f"{path}.{name}"
            if isinstance(value, SimpleNamespace):
                compare(value, getattr(actual, name), f"{path}.{name}")

    compare(vllm_config(), real, "vllm_config")


def test_breakable_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(refusals.RUNNER_VARIABLE, raising=False)
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    with pytest.raises(ConfigError, match="VLLM_USE_BREAKABLE_CUDAGRAPH=1"):
        refusals.check(vllm_config())


def test_the_choice_of_a_runner_is_the_engine_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process as in those that the configuration is sent to, and in no other engine."""
    import pickle

    from vllm.config import VllmConfig
    from vllm.config.utils import replace
    from vllm.engine.arg_utils import EngineArgs

    from tests.untrained import MODEL_DIR

    program = EngineArgs(model=str(MODEL_DIR), enforce_eager=True, additional_config={"metok": {}})
    monkeypatch.delenv(refusals.RUNNER_VARIABLE, raising=False)
    staged = program.create_engine_config()
    assert refusals.RUNNER_VARIABLE not in os.environ
    chosen = property(lambda _: True)  # as on a GPU, where vLLM prefers its second runner
    plain = EngineArgs(model=str(MODEL_DIR), enforce_eager=True).create_engine_config()
    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", chosen)
    assert plain.use_v2_model_runner
    assert isinstance(staged, VllmConfig)
    for config in (staged, pickle.loads(pickle.dumps(staged)), replace(staged)):
        assert not config.use_v2_model_runner
        assert config.compute_hash() == staged.compute_hash()


def test_another_runner_is_refused_by_name() -> None:
    refusals.check_runner("vllm.V1Runner", supported=True)
    with pytest.raises(RuntimeError, match=r"vllm.V2Runner.*VLLM_USE_V2_MODEL_RUNNER=0"):
        refusals.check_runner("vllm.V2Runner", supported=False)
