"""What people use instead of METok, so that it can be compared through the same engine.

A rule is chosen per request (`rule`, with `rule_keep` as the share of the tokens it keeps).
`random`, `evs` and `vidcom2` choose among the model's dense visual tokens in the encoder, in place
of stage 1; `fastv` chooses once, inside the decoder, by the attention of the prompt's last token.
This file holds the names alone, so that settings and counts need no torch.
"""

from __future__ import annotations

METOK, RANDOM, EVS, VIDCOM2, FASTV = "metok", "random", "evs", "vidcom2", "fastv"
ENCODER_RULES = (RANDOM, EVS, VIDCOM2)
RULES = (METOK, *ENCODER_RULES, FASTV)

__all__ = ["ENCODER_RULES", "EVS", "FASTV", "METOK", "RANDOM", "RULES", "VIDCOM2"]
