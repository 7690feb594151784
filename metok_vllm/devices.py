"""Copies of small tensors between host and device that do not wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_on(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers as a tensor on `device`."""
    return _on(torch.tensor(values), device)


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host that is valid once the device has done its queued work."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def array_on(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A host array as a tensor on `device`; on the CPU it shares the array's memory."""
    return _on(torch.from_numpy(values), device)


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    # A copy from pageable memory would wait for the device.
    return tensor.pin_memory().to(device, non_blocking=True)
