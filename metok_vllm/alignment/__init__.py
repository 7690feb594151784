"""Similarity of frames and question in one embedding space (SigLIP, CLIP)."""

from metok_vllm.alignment.pixels import Normalisation, renormalise, value_range
from metok_vllm.alignment.query import encode_query
from metok_vllm.alignment.towers import AlignmentTowers, load_config, text_window

__all__ = [
    "AlignmentTowers",
    "Normalisation",
    "encode_query",
    "load_config",
    "renormalise",
    "text_window",
    "value_range",
]
