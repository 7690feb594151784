"""Settings and media that the processor refuses with words for whoever sent them."""

from __future__ import annotations

import pytest
from vllm.exceptions import VLLMValidationError

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL, RESIZE, SELECT
from metok_vllm.models.input_checks import check_reduction, check_strides
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import AVERAGE, BILINEAR, VideoLayout
from tests.layouts import QWEN2_5_VL, QWEN3_VL


def test_a_stride_that_leaves_a_frame_no_token_is_refused() -> None:
    longva = VideoLayout(8, 24, 24, pooling=AVERAGE)
    check_strides(METokConfig(strides=(2, 4, 24)), longva)
    with pytest.raises(VLLMValidationError, match="24 patches") as caught:
        check_strides(METokConfig(strides=(2, 4, 25)), longva)
    assert caught.value.parameter == "metok.strides"
    check_strides(METokConfig(strides=(2, 4, 25), stages=(2, 3)), longva)
    check_strides(METokConfig(strides=(2, 4, 25)), VideoLayout(8, 24, 24, pooling=BILINEAR))


def test_a_reduction_that_the_model_does_not_have_is_refused_with_the_reason() -> None:
    longva = VideoLayout(8, 24, 24, pooling=AVERAGE)
    llava_video = VideoLayout(8, 27, 27, row_newline=True, reductions=(POOL,))
    for reduce in (POOL, SELECT):
        check_reduction(METokConfig(reduce=reduce), longva)
    for config in (QWEN2_5_VL, QWEN3_VL):
        check_reduction(METokConfig(reduce=RESIZE), video_layout(config, 8))
    for reduce, video, said in (
        (RESIZE, longva, "not available for this model; it has pool, select"),
        (SELECT, llava_video, "a newline ends each row of a frame; it has pool"),
    ):
        with pytest.raises(VLLMValidationError, match=said) as caught:
            check_reduction(METokConfig(reduce=reduce), video)
        assert caught.value.parameter == "metok.reduce"
        check_reduction(METokConfig(reduce=reduce, stages=(2, 3)), video)
        check_reduction(METokConfig(reduce=reduce, rule="evs"), video)
