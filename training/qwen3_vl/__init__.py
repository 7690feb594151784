"""Trains a small Qwen3-VL on event-QA, beginning with the demo model's weights.

    python -m training.qwen3_vl.command --work RUN --out benchmarks/models/qwen3_vl_eventqa

`warm_start` turns the demo's weights into Qwen3-VL's. `command` then trains the vision tower
(`tower`, `seeing`) on pairs of frames (`pairs`) until its tokens equal the demo's, and mergers and
decoder (`decoder`, `answering`) on questions about videos (`material`), whose prompt is that of
serving (`prompt`).
`exam` asks about held-out videos on the way, `checkpoint` writes the published layout.
"""
