"""Adaptive pooling: frames with stride classes to one packed token sequence.

For frame t of class c with stride s, its G x G patches are pooled to ceil(G/s)^2 (bilinear) or
floor(G/s)^2 (average) tokens; after the last frame of each event comes one newline token.
"""

from metok_vllm.kernels.adaptive_pool.packed import adaptive_pool, pack_index, pool_frames

__all__ = ["adaptive_pool", "pack_index", "pool_frames"]
