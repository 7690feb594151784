"""The demo's files, loaded once."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
import torch

from metok_vllm.demo import ALIGNMENT_DIR, MODEL_DIR, SAMPLE_VIDEO, SCENES
from metok_vllm.torch_shims import ensure_torchvision_ops

ensure_torchvision_ops()

import transformers  # noqa: E402 - after torchvision can be imported

Loaded = tuple[Any, dict[str, Any]]


@pytest.fixture(scope="session")
def video_model() -> Loaded:
    """The video model in float32 and what Hugging Face says about the loading."""
    loaded: Loaded = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
        MODEL_DIR, dtype=torch.float32, output_loading_info=True
    )
    return loaded


@pytest.fixture(scope="session")
def alignment_model() -> Loaded:
    loaded: Loaded = transformers.AutoModel.from_pretrained(
        ALIGNMENT_DIR, dtype=torch.float32, output_loading_info=True
    )
    return loaded


@pytest.fixture(scope="session")
def processor() -> Any:
    return transformers.AutoProcessor.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """One frame a second of the sample video, (60, 240, 240, 3) uint8."""
    with av.open(str(SAMPLE_VIDEO)) as container:
        return np.stack(
            [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index % 12 == 6
            ]
        )


@pytest.fixture(scope="session")
def at_cut() -> np.ndarray:
    """(59,) bool: a scene ends between frame i and i + 1 of `frames`."""
    times = np.arange(60) + 0.5
    scene = np.searchsorted([scene.end_s for scene in SCENES], times, side="right")
    cut: np.ndarray = np.diff(scene) != 0
    return cut
