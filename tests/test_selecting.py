"""Selection inside a frame against loops over Python lists.

Shape suffixes: T frames, P tokens of a frame, K kept tokens of a frame, D features.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.models.reducing import reduce_frames
from metok_vllm.plan.layout import AVERAGE, BILINEAR, VideoLayout
from metok_vllm.selecting import best_of_frames, token_scores
from tests.reference.stage1 import best_places, standing_out
from tests.reference.strategies import bounded


@st.composite
def frames(draw: st.DrawFn) -> Tensor:
    """Frames of random tokens, or of tokens from a small palette, which tie; one token is zero."""
    T, P, D = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    palette = torch.randn(draw(st.sampled_from([2, 4, 40])), D, generator=generator)
    palette[0] = 0.0
    return palette[torch.randint(0, len(palette), (T, P), generator=generator)]


@given(x_TPD=frames(), share=st.floats(0, 1))
@bounded
def test_as_in_python_loops(x_TPD: Tensor, share: float) -> None:
    T, P, _ = x_TPD.shape
    score_TP, _ = token_scores(x_TPD)
    expected_TP = torch.tensor([standing_out(frame) for frame in x_TPD.tolist()])
    torch.testing.assert_close(score_TP, expected_TP, atol=2e-5, rtol=0)
    counts = (round(share * P), P, 0)
    for count, (place_TK, kept_TKD) in zip(counts, best_of_frames(x_TPD, counts), strict=True):
        assert place_TK.tolist() == [best_places(frame, count) for frame in x_TPD.tolist()]
        for t in range(T):
            assert torch.equal(kept_TKD[t], x_TPD[t, place_TK[t]])


def test_a_token_unlike_its_frame_is_kept_and_so_is_a_long_one() -> None:
    x_1PD = torch.tensor([1.0, 0.0, 0.0]).repeat(1, 6, 1)
    x_1PD[0, 4] = torch.tensor([0.0, 1.0, 0.0])  # as long as the others, in another direction
    x_1PD[0, 2] *= 3.0
    (two, three) = best_of_frames(x_1PD, (2, 3))
    assert two[0].tolist() == [[2, 4]]
    assert three[0].tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("pooling", [BILINEAR, AVERAGE])
@pytest.mark.parametrize(("unit", "strides"), [(1, (2, 3, 8)), (2, (2, 4, 8))])
def test_a_chunk_gets_as_many_features_as_pooling_makes(
    unit: int, strides: tuple[int, ...], pooling: str
) -> None:
    """Rectangles, and features that have a stride already; the dense stride keeps every one."""
    video = VideoLayout(3, 10 // unit, 18 // unit, unit=unit, pooling=pooling)
    x_TPD = torch.randn(3, video.rows * video.columns, 8)
    dense_TPD = reduce_frames(x_TPD, video, (2,), POOL)[0][0]
    pooled = reduce_frames(x_TPD, video, strides, POOL)
    selected = reduce_frames(x_TPD, video, strides, SELECT)
    for (pooled_TKD, none), (kept_TKD, place_TK) in zip(pooled, selected, strict=True):
        assert none is None
        assert kept_TKD.shape == pooled_TKD.shape
        assert place_TK is not None
        assert torch.equal(kept_TKD, dense_TPD[torch.arange(3)[:, None], place_TK])
    assert torch.equal(selected[0][0], dense_TPD)


def test_nothing_waits_for_the_device() -> None:
    """Tensors without values: reading one raises."""
    x_TPD = torch.empty(3, 9, 4, device="meta")
    for count, (place_TK, kept_TKD) in zip((9, 4), best_of_frames(x_TPD, (9, 4)), strict=True):
        assert (place_TK.shape, kept_TKD.shape) == ((3, count), (3, count, 4))
