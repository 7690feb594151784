"""The encoder rules against Python loops, and against vLLM's own functions where it has them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metok_vllm.baselines import encoder, evs, random, vcast, vidcom2
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import ENCODER_RULES, FASTV
from metok_vllm.selecting import token_scores
from tests.baselines import naive
from tests.layouts import square
from tests.reference.stage1 import exact
from tests.reference.strategies import bounded, shares

# Frames, tokens of a frame, features: odd ones, one frame, one token a frame.
SHAPES = ((8, 16, 32), (5, 9, 12), (1, 16, 8), (6, 1, 16), (3, 4, 3), (12, 49, 24))
SHARES = (0.05, 0.25, 0.5, 0.9, 1.0)


def scenes(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Frames of up to three scenes with noise, float32 [T, P, D]."""
    T, P, D = shape
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(3, P, D, generator=generator)
    scene_T = torch.randint(0, 3, (T,), generator=generator).sort().values
    return still[scene_T] + 0.6 * torch.randn(T, P, D, generator=generator)


def is_selection(index_N: Tensor, keep: int, tokens: int) -> bool:
    """So many different tokens, rising."""
    index = index_N.tolist()
    rising = all(a < b for a, b in pairwise(index))
    return rising and len(index) == keep and index[0] >= 0 and index[-1] < tokens


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_as_in_python_loops(shape: tuple[int, int, int], share: float, seed: int) -> None:
    x_TPD = scenes(shape, seed)
    keep = math.ceil(exact(share) * shape[0] * shape[1])
    assert evs.select(x_TPD, keep).tolist() == naive.evs(x_TPD.tolist(), keep)
    assert vidcom2.select(x_TPD, keep).tolist() == naive.vidcom2(x_TPD.tolist(), keep)
    assert vcast.select(x_TPD, keep).tolist() == naive.vcast(x_TPD.tolist(), keep)


@st.composite
def videos(draw: st.DrawFn) -> Tensor:
    """Small videos full of ties: tokens from a palette of three, or zero."""
    T, P, D = draw(st.integers(1, 9)), draw(st.integers(1, 12)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    palette = torch.randn(4, D, generator=generator)
    palette[3] = 0.0
    return palette[torch.randint(0, draw(st.integers(1, 4)), (T, P), generator=generator)]


@given(x_TPD=videos(), share=shares, rule=st.sampled_from(ENCODER_RULES))
@bounded
def test_counts_and_order_hold_whatever_the_content(x_TPD: Tensor, share: float, rule: str) -> None:
    tokens = x_TPD.shape[0] * x_TPD.shape[1]
    keep = math.ceil(exact(share) * tokens)
    index_N = encoder.select(rule, x_TPD, keep, "a video")
    assert is_selection(index_N, keep, tokens)
    assert torch.equal(index_N, encoder.select(rule, x_TPD, keep, "a video"))


@given(x_TPD=videos(), share=shares)
@bounded
def test_vcast_breaks_ties_as_python_loops_do(x_TPD: Tensor, share: float) -> None:
    keep = math.ceil(exact(share) * x_TPD.shape[0] * x_TPD.shape[1])
    assert vcast.select(x_TPD, keep).tolist() == naive.vcast(x_TPD.tolist(), keep)


@pytest.mark.parametrize("shape", [(5, 9, 12), (2, 9, 12), (1, 9, 12)])
@pytest.mark.parametrize("rule", ENCODER_RULES)
def test_nothing_waits_for_the_device(rule: str, shape: tuple[int, int, int]) -> None:
    """Tensors without values: reading one, or a shape that depends on one, raises."""
    x_TPD = torch.empty(shape, device="meta")
    for keep in (1, 5, 9):
        assert encoder.select(rule, x_TPD, keep, "a video").shape == (keep,)


@given(frames=st.integers(1, 130), grid=st.integers(1, 27), share=shares)
@bounded
def test_the_count_follows_from_the_settings(frames: int, grid: int, share: float) -> None:
    per_frame = square(1, grid).dense_tokens() - 1
    kept = math.ceil(exact(share) * frames * per_frame)
    assert square(frames, grid).kept_features(share) == kept
    for stages in ((1, 2, 3), (2,)):
        for rule in ENCODER_RULES:
            config = METokConfig(rule=rule, rule_keep=share, stages=stages)
            assert square(frames, grid).tokens(config) == kept + 1
        fastv = METokConfig(rule=FASTV, rule_keep=share, stages=stages)
        assert square(frames, grid).tokens(fastv) == square(frames, grid).dense_tokens()
    off = METokConfig(rule=ENCODER_RULES[0], rule_keep=share, enabled=False)
    assert square(frames, grid).tokens(off) == square(frames, grid).dense_tokens()


class TestRandom:
    def test_a_video_draws_the_same_again_and_another_one_differently(self) -> None:
        x_TPD = torch.zeros(8, 16, 2)
        first, again, other = (random.select(x_TPD, 32, key) for key in ("a", "a", "b"))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_every_token_is_as_likely(self) -> None:
        """4,000 draws of 3 in 12: 1,000 each expected, 27 the standard deviation."""
        x_TPD = torch.zeros(3, 4, 1)
        seen = Counter(
            token for n in range(4000) for token in random.select(x_TPD, 3, f"{n}").tolist()
        )
        assert set(seen) == set(range(12))
        assert all(abs(count - 1000) < 5 * 27.4 for count in seen.values())


def test_evs_keeps_the_first_frame_first_and_then_what_moved() -> None:
    x_TPD = torch.ones(4, 4, 3)
    x_TPD[2, 1] = torch.tensor([1.0, -1.0, 0.0])  # away from the frame before, and back again
    assert evs.select(x_TPD, 3).tolist() == [0, 1, 2]
    assert evs.select(x_TPD, 6).tolist() == [0, 1, 2, 3, 9, 13]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.75, 0.9])
@pytest.mark.parametrize("shape", [(8, 16, 32), (1, 9, 8), (16, 49, 16)])
def test_evs_is_what_vllm_selects(shape: tuple[int, int, int], rate: float) -> None:
    from vllm.multimodal.video_prune.evs import compute_retention_mask

    T, P, D = shape
    x_TPD = scenes(shape, 5)
    side = math.isqrt(P)
    mask_N = compute_retention_mask(x_TPD.reshape(-1, D), (T, side, side), 1, rate)
    index_N = mask_N.nonzero()[:, 0]
    assert torch.equal(evs.select(x_TPD, len(index_N)), index_N)


def test_vidcom2_selects_as_vllm_where_rounding_makes_no_difference() -> None:
    """vLLM rounds a frame's budget by itself and then repairs the sum token by token."""
    from vllm.multimodal.video_prune.vidcom2 import compute_retention_mask

    same_budgets = 0
    for seed in range(8):
        for (T, P, D), rate in (((8, 16, 32), 0.5), ((5, 49, 64), 0.75), ((16, 196, 64), 0.75)):
            x_TPD = scenes((T, P, D), seed)
            side = math.isqrt(P)
            mask_N = compute_retention_mask(x_TPD.reshape(-1, D), (T, side, side), 1, rate)
            theirs_N = mask_N.nonzero()[:, 0]
            ours_N = vidcom2.select(x_TPD, len(theirs_N))
            common = len(set(ours_N.tolist()) & set(theirs_N.tolist()))
            assert common >= 0.95 * len(theirs_N)
            budgets = [torch.bincount(n // P, minlength=T) for n in (ours_N, theirs_N)]
            if torch.equal(*budgets):
                same_budgets += 1
                assert torch.equal(ours_N, theirs_N)
    assert same_budgets >= 8


def test_vidcom2_gives_a_distinctive_frame_more_and_none_too_much() -> None:
    x_TPD = scenes((8, 16, 32), 1)
    x_TPD[:] = x_TPD[:1]
    x_TPD[5] = scenes((1, 16, 32), 9)[0]
    to_video_TP, _ = vidcom2.similarities(x_TPD)
    for keep in (1, 8, 40, 90, 127, 128):
        count_T = vidcom2.budgets(to_video_TP, keep).tolist()
        assert sum(count_T) == keep
        assert max(count_T) == count_T[5] <= 16
    assert vidcom2.budgets(to_video_TP, 64).tolist()[5] > 8


@given(
    turns=st.lists(st.integers(0, 20_000) | st.sampled_from([0, 10_000, 20_000]), min_size=1),
    tokens=st.integers(1, 200),
    share=shares,
)
@bounded
def test_vcast_shares_out_as_in_python_loops(turns: list[int], tokens: int, share: float) -> None:
    """Any curvatures: full frames, ties, fewer tokens than frames."""
    T = len(turns)
    for keep in (math.ceil(exact(share) * T * tokens), T, 1, T * tokens):
        count_T = vcast.budgets(torch.tensor(turns), tokens, keep)
        by_hand = naive.vcast_budgets([turn / 10_000 for turn in turns], tokens, keep)
        assert count_T.tolist() == by_hand
        assert sum(by_hand) == keep
        assert max(by_hand) <= tokens
        assert min(by_hand) >= (keep >= T)


def test_vcast_gives_a_turn_more_and_a_straight_run_less() -> None:
    """A walk in a line to frame 4 and back: it turns there and nowhere else."""
    place_T = torch.tensor([0, 1, 2, 3, 4, 3, 2, 1, 0]) / 10
    frame_TD = torch.stack([place_T, torch.ones(9), torch.zeros(9)], dim=1)
    ends, straight, turn = [10_000], [0] * 3, [20_000]
    assert vcast.curvature(frame_TD).tolist() == [*ends, *straight, *turn, *straight, *ends]
    counts = vcast.budgets(vcast.curvature(frame_TD), 16, 50).tolist()
    assert counts[4] > counts[0] == counts[8] > counts[1]


def test_vcast_takes_rounding_for_neither_a_step_nor_a_norm() -> None:
    """A still video whose tokens differ in their last bits: frames alike, and no token first."""
    noise = 1e-6 * torch.randn(6, 8, 32, generator=torch.Generator().manual_seed(4))
    x_TPD = torch.nn.functional.normalize(torch.ones(6, 8, 32) + noise, dim=-1)
    score_TP, frame_TD = token_scores(x_TPD)
    assert vcast.curvature(frame_TD).tolist() == [10_000] * 6
    assert score_TP.abs().max() < 1e-5
    counts = torch.bincount(vcast.select(x_TPD, 27) // 8)
    assert counts.tolist() == [5, 5, 5, 4, 4, 4]


def test_vcast_reads_half_precision_in_float32() -> None:
    x_TPD = scenes((8, 16, 32), 2).bfloat16()
    assert torch.equal(vcast.select(x_TPD, 40), vcast.select(x_TPD.float(), 40))
