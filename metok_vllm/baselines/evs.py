"""EVS, Efficient Video Sampling: tokens that differ most from the frame before.

Bagrov et al. 2025, arXiv 2510.14624, as vLLM has it (`vllm.multimodal.video_prune.evs`): on
embeddings, not on pixels. The tests compare it with vLLM's.

Shape suffixes: T frames, P tokens of a frame, D features, N = T * P tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# 1 - cos is at most 2: the first frame comes before all others.
FIRST_FRAME = 3.0


def select(x_TPD: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` most changed of the T * P tokens, int64 [keep], rising.

    A token has changed by 1 - cos(it, the token at its place in the frame before). The first frame
    is kept whole first; ties go to the earlier token.
    """
    x = x_TPD.float()
    changed_TP = 1 - F.cosine_similarity(x[1:], x[:-1], dim=-1)
    first_1P = torch.full_like(x[:1, :, 0], FIRST_FRAME)
    changed_N = torch.cat([first_1P, changed_TP]).flatten()
    assert 1 <= keep <= changed_N.shape[0]
    return torch.argsort(changed_N, descending=True, stable=True)[:keep].sort().values
