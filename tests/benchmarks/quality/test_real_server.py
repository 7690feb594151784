"""Real servers of the demo model hold the tokens that the frontier solved for."""

from __future__ import annotations

from pathlib import Path

import pytest

from metok_vllm.benchmarks.quality.frontier import held_tokens, rivals
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.harness import Cell, measure
from metok_vllm.benchmarks.quality.rows import rows
from metok_vllm.benchmarks.quality.source import Source, opened
from metok_vllm.benchmarks.questions.prompts import ALL, read_folder
from metok_vllm.benchmarks.questions.settings import DENSE, OFF, Setting, pooling, request_config
from metok_vllm.config import METokConfig
from metok_vllm.demo import MODEL_DIR
from tests.benchmarks.quality.canned import write_folder

FRAMES = 8
QUESTIONS = [{"question": "What happens first?"}, {"question": "What is seen last?"}]
# The demo's presets keep all of 8 frames.
VALUES = {"num_events": 4, "key_frames_per_event": 1, "keep_ratio": 0.76, "decode_keep": 0.5}
METOK = Setting("METok", "METok", {"preset": "max", **VALUES})
AGAIN = Setting("dense again", "dense", OFF)
UNALIGNED = Setting("unaligned", "METok", METOK.request, server={"alignment_mode": "none"})


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_through_the_engine(tmp_path: Path) -> None:
    geometry = Geometry.of_model(str(MODEL_DIR), "float32")
    source = Source(checkpoint="demo")
    base = source.config() or METokConfig()
    target = held_tokens(request_config(base, METOK), FRAMES, geometry)
    others = rivals(target, "METok", FRAMES, geometry, base)
    settings = (DENSE, AGAIN, METOK, UNALIGNED, pooling(8), *others)
    questions = tuple(read_folder(write_folder(tmp_path, 2, QUESTIONS), FRAMES))
    with opened(source) as (serve, known):
        assert known == geometry
        batches = list(measure([Cell(FRAMES, questions, settings)], serve, geometry))
    answers = {setting.name: found for _, setting, found in batches}
    assert {a.error for found in answers.values() for a in found} == {None}
    assert list(answers)[-1] == "unaligned"  # the only one that needs a server of its own
    for again in answers["dense again"]:
        assert again.agrees
        assert again.kl == pytest.approx(0, abs=1e-5)
    assert any((a.kl or 0) > 1e-4 for a in answers["METok"])

    dense = geometry.video(FRAMES).dense_tokens()
    text = [(a.prompt_tokens or 0) - dense for a in answers["dense"]]
    for setting in (DENSE, METOK, pooling(8), *others):
        if setting.frames_share < 1:
            continue
        held = held_tokens(request_config(base, setting), FRAMES, geometry)
        reported = [a.kv_tokens for a in answers[setting.name]]
        assert reported == [held + geometry.layers * tokens for tokens in text], setting.name
    found = {row.setting: row for row in rows(batches) if row.kind == ALL}
    assert found["METok"].kv_tokens is not None
    for setting in others:
        if setting.line in ("random", "EVS", "VidCom2", "V-CAST"):
            rival = found[setting.name].kv_tokens
            assert rival is not None
            assert abs(rival - found["METok"].kv_tokens) <= geometry.layers / 2
    for row in found.values():
        # Rounding up to blocks weighs much in a video of eight frames.
        assert row.kv_bytes is not None
        assert row.kv_bytes >= (row.kv_tokens or 0) * geometry.token_layer_bytes
        assert row.kv_share is not None
        assert row.kv_share < 0.75 or row.line == "dense"
