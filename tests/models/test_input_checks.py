"""Settings and media that the processor refuses with words for whoever sent them."""

from __future__ import annotations

import pytest
from vllm.exceptions import VLLMValidationError

from metok_vllm.config import METokConfig
from metok_vllm.models.input_checks import check_strides
from metok_vllm.plan.layout import AVERAGE, BILINEAR, VideoLayout


def test_a_stride_that_leaves_a_frame_no_token_is_refused() -> None:
    longva = VideoLayout(8, 24, 24, pooling=AVERAGE)
    check_strides(METokConfig(strides=(2, 4, 24)), longva)
    with pytest.raises(VLLMValidationError, match="24 patches") as caught:
        check_strides(METokConfig(strides=(2, 4, 25)), longva)
    assert caught.value.parameter == "metok.strides"
    check_strides(METokConfig(strides=(2, 4, 25), stages=(2, 3)), longva)
    check_strides(METokConfig(strides=(2, 4, 25)), VideoLayout(8, 24, 24, pooling=BILINEAR))
