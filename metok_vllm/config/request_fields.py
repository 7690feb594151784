"""Which fields of a METokConfig a request may set."""

from __future__ import annotations

# Block tables are laid out once, so layer boundaries are not here.
REQUEST_FIELDS = frozenset(
    {
        "enabled",
        "preset",
        "stages",
        "num_events",
        "key_event_ratio",
        "key_frames_per_event",
        "strides",
        "reduce",
        "keep_ratio",
        "decode_keep",
        "evict_after",
        "focus",
        "focus_text",
        "rule",
        "rule_keep",
    }
)
# Fields that a request may set only where the stage that reads them runs.
STAGE_OF_FIELD = {"keep_ratio": 2, "decode_keep": 3, "evict_after": 3}
