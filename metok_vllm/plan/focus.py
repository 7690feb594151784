"""Where the text that selects ends in a prompt, so that a later prompt can go on from there.

A prompt is a core and a rest. The core ends with the text that selects: its rows after the last
video score visual tokens. The rest are answers and later questions: text that sees what the core
kept. What a layer caches of a token depends on the core and on the tokens before it alone, so a
prompt with the same core may read it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from metok_vllm.config.methods import CONVERSATION, TURN, VIDEO


@dataclass(frozen=True)
class Focus:
    """The setting `focus` of a request, and the token ids that end a user's message."""

    kind: str = TURN
    ends: Collection[int] = ()

    def core_tokens(self, token_ids: Sequence[int], last_visual: int) -> int | None:
        """Tokens of the core, of which at least one comes after the last video, at `last_visual`.

        None where it would be the whole prompt: nothing can go on from such a prompt.
        """
        if self.kind == VIDEO:
            core = last_visual + 1
        elif self.kind == CONVERSATION:
            after = range(last_visual, len(token_ids))
            end = next((at for at in after if token_ids[at] in self.ends), len(token_ids))
            core = max(end, last_visual + 1)
        else:
            return None
        return core if core < len(token_ids) else None
