"""Distances of positions travel as channels of an embedding's type, exactly."""

from __future__ import annotations

import pytest
import torch

from metok_vllm.models.positions import MAX_SPAN, from_channels, to_channels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_distance_survives(dtype: torch.dtype) -> None:
    value_N = torch.arange(MAX_SPAN + 1)
    offset_N3 = torch.stack([value_N, value_N.flip(0), value_N.roll(300)], dim=1)
    channel_N6 = to_channels(offset_N3, dtype)
    assert channel_N6.dtype is dtype
    assert channel_N6.shape == (MAX_SPAN + 1, 6)
    assert torch.equal(from_channels(channel_N6), offset_N3)


def test_one_channel_an_axis_would_not_do() -> None:
    """Why there are two: bfloat16 has eight bits of precision."""
    assert int(torch.tensor(257).to(torch.bfloat16)) != 257
