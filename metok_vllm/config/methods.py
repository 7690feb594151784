"""Names of the pruning methods: METok, its ways to make a frame coarser, and its baselines.

A request chooses one with `rule`; `rule_keep` is the share of the tokens that a baseline keeps.
`random`, `evs`, `vidcom2` and `vcast` select among the dense visual tokens in the encoder, in place
of stage 1. `fastv` selects once, inside the decoder, by the attention of the prompt's last token.
The methods themselves are in `metok_vllm.baselines`; names alone need no torch.
"""

from __future__ import annotations

METOK, RANDOM, EVS, VIDCOM2, VCAST = "metok", "random", "evs", "vidcom2", "vcast"
FASTV = "fastv"
ENCODER_RULES = (RANDOM, EVS, VIDCOM2, VCAST)
RULES = (METOK, *ENCODER_RULES, FASTV)

# The text that selects: the last question, the first one about a video, or none.
TURN, CONVERSATION, VIDEO = "turn", "conversation", "video"
FOCUSES = (TURN, CONVERSATION, VIDEO)

# How stage 1 makes a frame coarser: its features are averaged, the best of them stay on the grid,
# or the frame is encoded at a coarser resolution. The number of tokens is the same.
POOL, SELECT, RESIZE = "pool", "select", "resize"
REDUCTIONS = (POOL, SELECT, RESIZE)
