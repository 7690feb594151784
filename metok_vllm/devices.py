"""Small tensors on the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_on(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers as a tensor on `device`. From pageable memory a copy to CUDA would synchronise."""
    tensor = torch.tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
