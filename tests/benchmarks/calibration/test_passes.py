"""The dense and the pruned pass compared with Hugging Face's model and the naive METok."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm.benchmarks.calibration.measure import Meter, Sample
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.passes import dense_logprobs, run_dense, run_pruned
from metok_vllm.benchmarks.calibration.prompts import find_questions
from metok_vllm.benchmarks.calibration.setting import Prompt, Setting, plan_of
from metok_vllm.config import METokConfig
from metok_vllm.video import read_video
from tests.benchmarks.calibration.checkpoints import LAYERS
from tests.benchmarks.calibration.conftest import FRAMES
from tests.reference.decoder import Video, generate
from tests.reference.pruning import planned_tokens
from tests.reference.staged_checkpoint import language_model, load_model

BOUNDARIES = (2, 4, 6)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Any:
    """The same weights with Hugging Face's own attention."""
    return load_model(checkpoint)


def test_the_dense_answer_is_hugging_faces(
    plain: Any, model: CalibratedModel, samples: Sequence[Sample], videos: Path
) -> None:
    """Prompt, visual tokens and decoder: pixels and chat template in, log-probabilities out."""
    questions = find_questions(videos, None, 2, 1, FRAMES)
    for sample, question in zip(samples, questions, strict=True):
        content = [{"type": "video"}, {"type": "text", "text": question.question}]
        text = model.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        frames_THWC = read_video(question.video.read_bytes(), FRAMES).frames_THWC
        frames_TCHW = torch.tensor(frames_THWC).permute(0, 3, 1, 2)
        inputs = model.processor(
            text=text, videos=[frames_TCHW], do_sample_frames=False, return_tensors="pt"
        )
        count = len(sample.answer)
        with torch.no_grad():
            output = plain.generate(
                **inputs,
                max_new_tokens=count,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        expected_SV = torch.log_softmax(torch.cat(output.logits), -1)
        assert output.sequences[0, -count:].tolist() == sample.answer
        torch.testing.assert_close(sample.logprobs_SV, expected_SV, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stages", [(2, 3), (1, 2, 3)])
@pytest.mark.parametrize("decode_keep", [0.0, 0.25])
def test_pruning_equals_the_naive_reference(
    plain: Any,
    model: CalibratedModel,
    samples: Sequence[Sample],
    stages: tuple[int, ...],
    decode_keep: float,
) -> None:
    """Full attention matrices and plain lists give the same tokens kept and the same answer."""
    prompt, keep = samples[0].prompt(stages), 0.6
    expected = naive_answer(plain, prompt, model, keep, decode_keep)
    assert expected.margin > 1e-7, "a smaller margin could flip a decision"
    got_SV = pruned(model, prompt, expected.tokens, Setting(BOUNDARIES, keep, decode_keep))
    torch.testing.assert_close(got_SV, expected.logprobs_SV, atol=1e-4, rtol=0)
    dense = run_dense(model.decoder, prompt, expected.tokens[:-1])
    moved = (dense_logprobs(model.decoder, dense) - expected.logprobs_SV).abs().max()
    assert moved > 1e-2, "dropping nothing must give another result"


def naive_answer(
    plain: Any, prompt: Prompt, model: CalibratedModel, keep: float, decode_keep: float
) -> Any:
    config: METokConfig = model.config
    totals = planned_tokens(
        prompt.video.frames,
        prompt.tokens,
        config.num_events,
        config.key_event_ratio,
        config.key_frames_per_event,
        config.strides,
        prompt.video.rows,
        keep,
        1 in prompt.stages,
    )
    events = prompt.events
    video = Video(
        prompt.start,
        events.event_N.tolist(),
        events.key_E.tolist(),
        events.relevance_E.tolist(),
        totals,
    )
    return generate(
        language_model(plain), prompt.embeds_ND, [video], BOUNDARIES, 4, decode_keep=decode_keep
    )


@torch.no_grad()
def pruned(model: CalibratedModel, prompt: Prompt, tokens: list[int], setting: Setting) -> Tensor:
    dense = run_dense(model.decoder, prompt, tokens[:-1])
    plan = plan_of(setting, prompt, model.config)
    (got_SV,) = run_pruned(model.decoder, prompt, dense, setting.boundaries, [plan])
    return got_SV


def test_nothing_dropped_is_no_divergence(
    model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    everything = [
        Setting(BOUNDARIES, decode_keep=1.0, drops=()),
        Setting(BOUNDARIES, drops=()),
        Setting((LAYERS, LAYERS, LAYERS), decode_keep=0.0),
    ]
    less = Setting(BOUNDARIES, decode_keep=0.0, drops=())
    meter = Meter(model, samples, lambda _: None)
    *same, other = meter.measure([*everything, less], "test")
    for divergence in same:
        assert divergence.worst < 1e-8
        assert divergence.same_answers == divergence.agreement == 1
    assert other.first < 1e-8
    assert other.following > 1e-4


def test_a_keep_ratio_of_one_keeps_what_key_events_hold(
    checkpoint: Path, samples: Sequence[Sample]
) -> None:
    """Where every event is a key event, both selections keep all tokens at ratio 1."""
    config = METokConfig(key_event_ratio=1.0)
    model = CalibratedModel.load(str(checkpoint), config)
    meter = Meter(model, samples, lambda _: None)
    same, dropped = meter.measure(
        [Setting(BOUNDARIES, 1.0, 1.0, drops=(1, 2)), Setting(BOUNDARIES, 1.0, 1.0)], "test"
    )
    assert same.worst < 1e-8
    assert dropped.worst > 1e-4


def test_settings_that_share_a_prefill_give_what_they_give_alone(
    model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    settings = [Setting(BOUNDARIES, 0.6, keep) for keep in (0.0, 0.25, 1.0)]
    together = Meter(model, samples, lambda _: None).measure(settings, "test")
    for setting, expected in zip(settings, together, strict=True):
        (alone,) = Meter(model, samples, lambda _: None).measure([setting], "test")
        assert alone == expected
    assert len({divergence.following for divergence in together}) == 3
