"""Every count, once: tokens of a video, stages of a prompt, layers, FLOPs and blocks."""
