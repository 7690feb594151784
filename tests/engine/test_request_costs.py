"""The costs that are foretold are those of the engine, and its log says them."""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.engine import request_costs
from metok_vllm.engine.request_costs import engine_sizes, log_costs
from metok_vllm.plan.costs import TEXT_BEFORE, TEXT_TOKENS, request_cost
from tests.engine.staged import StagedEngine
from tests.engine.staged_prompts import Clip, make_prompt

pytestmark = pytest.mark.slow

AFTER = TEXT_TOKENS - TEXT_BEFORE


def settings_of(engine: StagedEngine) -> tuple[METokConfig, Any]:
    vllm_config = engine.llm.llm_engine.vllm_config
    return METokConfig.from_dict(vllm_config.model_config.hf_config.metok), vllm_config


@pytest.mark.parametrize("frames", [32, 96])
def test_steps_and_blocks_are_the_engine_s(
    short_step: StagedEngine, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    steps = 0
    step = short_step.llm.llm_engine.step

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return step()

    config, vllm_config = settings_of(short_step)
    cost = request_cost(frames, config, engine_sizes(config, vllm_config))
    monkeypatch.setattr(short_step.llm.llm_engine, "step", counted)
    held, rows = short_step.measure(make_prompt((TEXT_BEFORE, Clip(3, (frames,)), AFTER), {}))
    assert rows[0] == cost.metok.prompt_tokens
    assert sum(held) == cost.decode_blocks
    assert steps == cost.metok.prefill_steps + 1
    assert cost.metok.prefill_steps == (1 if frames == 32 else 2)


def test_the_buffer_is_as_large_as_foretold(short_step: StagedEngine) -> None:
    sizes = engine_sizes(*settings_of(short_step))
    buffer = short_step.model.staged.buffer
    assert buffer.num_rows == sizes.buffer_rows
    positions = 8 * buffer.num_rows
    assert buffer.hidden_BD.nbytes + buffer.key_BGD.nbytes + positions == sizes.buffer_bytes


def test_the_log_has_a_line_for_the_buffer_and_each_number_of_frames(
    short_step: StagedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(request_costs.logger, "info", lambda text, *of: lines.append(text % of))
    log_costs(*settings_of(short_step))
    assert "4096 rows" in lines[0]
    assert [line.split(" frames")[0].split()[-1] for line in lines[1:]] == ["32", "64", "128"]
    # 128 frames of 16 tokens and a newline are 5 steps of 512 tokens, and over 2,048 with the text.
    assert "2049 / " in lines[3]
    assert " 5 / 2 prefill steps" in lines[3]
    assert lines[3].endswith("longer than 2048 tokens: dense")
