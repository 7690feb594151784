"""VidCom2, Video Compression Commander: distinctive frames keep more, and of each the outliers.

Liu et al. 2025, arXiv 2505.14454; released code github.com/xuyang-liu16/VidCom2 at 944a17d1, read
and not copied. Its budgets are rounded frame by frame, so their sum depends on the content; here
the total is exact, because vLLM lays out the prompt first. Its floor of one token a frame gives way
to that.

Shape suffixes: T frames, P tokens of a frame, D features, C channels, N = T * P tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.apportion import share_out
from metok_vllm.kernels.event_topk import event_topk

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the Gaussian kernels, summed
TEMPERATURE = 0.01  # of the softmax over frames
# Shares of frames become whole numbers, so that largest remainders are exact on every device.
WHOLE = 1 << 20


def select(x_TPD: Tensor, keep: int) -> Tensor:
    """Indices of `keep` of the T * P tokens, int64 [keep], rising: frame by frame its budget of the
    tokens least like their frame and the video (ties: the earlier)."""
    T, P, _ = x_TPD.shape
    assert 1 <= keep <= T * P
    to_video_TP, to_frame_TP = similarities(x_TPD)
    count_T = budgets(to_video_TP, keep)
    frame_N = torch.arange(T, device=x_TPD.device).repeat_interleave(P)
    return event_topk(-(to_video_TP + to_frame_TP).flatten(), frame_N, count_T, keep)


def similarities(x_TPD: Tensor) -> tuple[Tensor, Tensor]:
    """Likeness of each token to the mean of the video and of its frame, float32 [T, P].

    Measured on unit vectors of the half of the channels that vary least over the video.
    """
    x = x_TPD.float()
    variance_D = x.flatten(0, 1).var(dim=0, unbiased=False)
    channel_C = variance_D.topk(max(1, len(variance_D) // 2), largest=False).indices
    x_TPC = F.normalize(x.index_select(-1, channel_C), dim=-1)
    to_video_TP = _gaussians(x_TPC, x_TPC.mean(dim=(0, 1), keepdim=True))
    return to_video_TP, _gaussians(x_TPC, x_TPC.mean(dim=1, keepdim=True))


def budgets(to_video_TP: Tensor, keep: int) -> Tensor:
    """Tokens that each frame keeps, int64 [T], `keep` in all and none above P.

    A frame's share is base * (1 + p - mean(p)), at most 1, with base = keep / (T * P) and p the
    softmax of how unlike the video its tokens are. Largest remainders make the total exact; what a
    full frame cannot take goes to the most distinctive ones first.
    """
    T, P = to_video_TP.shape
    distinct_T = -to_video_TP.mean(dim=1)
    p_T = torch.softmax(distinct_T / TEMPERATURE, dim=0)
    share_T = (keep / (T * P) * (1 + p_T - p_T.mean())).clamp(max=1.0)
    weight_T = (share_T / share_T.max() * WHOLE).round().long()
    return share_out(keep, torch.full_like(weight_T, P), weight_T, distinct_T)


def _gaussians(x_TPC: Tensor, centre_C: Tensor) -> Tensor:
    distance_TP = (x_TPC - centre_C).square().sum(dim=-1)
    return torch.stack([torch.exp(-distance_TP / (2 * a)) for a in BANDWIDTHS]).sum(dim=0)
