"""Model families by the `model_type` of their Hugging Face configuration, and their own presets.

Imports nothing of models: configuration and plans read these names before any model is loaded.
"""

from __future__ import annotations

# Videos of Qwen's models are temporal patches: two sampled frames each in published checkpoints.
QWEN2_5_VL = "qwen2_5_vl"
# Those of these families stand between timestamps.
TIMESTAMPED = frozenset({"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})
QWEN_VL = TIMESTAMPED | {QWEN2_5_VL}
# Decoders with layers that hold a state in place of keys and values: stage 1 is all that runs.
STATEFUL = frozenset({"qwen3_5", "qwen3_5_moe"})

# A frame of these families is a temporal patch, and a video has half as many: the paper's count of
# key frames would keep two thirds of 64 sampled frames. Shares of an event's frames, by preset.
KEY_FRAME_SHARES = {kind: {"quality": 0.5, "balanced": 0.25, "max": 0.1} for kind in QWEN_VL}
