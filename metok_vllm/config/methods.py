"""Names of the pruning methods: METok, and the baselines that it is compared with.

A request chooses one with `rule`; `rule_keep` is the share of the tokens that a baseline keeps.
`random`, `evs` and `vidcom2` select among the dense visual tokens in the encoder, in place of
stage 1. `fastv` selects once, inside the decoder, by the attention of the prompt's last token. The
methods themselves are in `metok_vllm.baselines`; names alone need no torch.
"""

from __future__ import annotations

METOK, RANDOM, EVS, VIDCOM2, FASTV = "metok", "random", "evs", "vidcom2", "fastv"
ENCODER_RULES = (RANDOM, EVS, VIDCOM2)
RULES = (METOK, *ENCODER_RULES, FASTV)
