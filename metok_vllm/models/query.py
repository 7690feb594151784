"""The user's question, found in the token ids of a rendered prompt.

The multimodal processor sees token ids only, whoever sent the request (HTTP, `LLM.chat`, a raw
prompt), so the question is read back from them: the text of the last user turn, recognised by what
the chat template puts around one. Messages of the user that follow each other are one turn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

USER_TURN, PROMPT_TEXT, NONE = "user_turn", "prompt_text", "none"


class QueryFinder:
    """Finds the question. `template` is the chat template that prompts are rendered with."""

    def __init__(self, tokenizer: Any, template: str | None, media_token_ids: Sequence[int]):
        self.tokenizer = tokenizer
        self.media_token_ids = frozenset(media_token_ids)
        self.header, self.footer = _user_turn_frame(tokenizer, template)
        self.end = _message_end(tokenizer, template, self.header)

    def find(self, prompt_ids: Sequence[int]) -> tuple[str, str]:
        """The question and where it came from: `user_turn`, `prompt_text` or `none`."""
        kept = [token for token in prompt_ids if token not in self.media_token_ids]
        text = self.tokenizer.decode(kept, skip_special_tokens=False)
        if self.header and self.header in text:
            turn = self._last_turn(text)
            return (turn, USER_TURN) if turn else ("", NONE)
        return self._after_media(prompt_ids)

    def _last_turn(self, text: str) -> str:
        """The user's words since the last answer; of an earlier turn where there are none."""
        words: list[str] = []
        for message in reversed(text.split(self.header)[1:]):
            said, answered, _ = message.partition(self.footer) if self.footer else (message, "", "")
            if answered and words:
                break
            if not answered:
                said = said.strip().removesuffix(self.end)
            if said.strip():
                words.insert(0, said.strip())
        return "\n".join(words)

    def _after_media(self, prompt_ids: Sequence[int]) -> tuple[str, str]:
        media = [i for i, token in enumerate(prompt_ids) if token in self.media_token_ids]
        after = list(prompt_ids[media[-1] + 1 :]) if media else list(prompt_ids)
        text = self.tokenizer.decode(after, skip_special_tokens=True).strip()
        if not text:
            rest = [token for token in prompt_ids if token not in self.media_token_ids]
            text = self.tokenizer.decode(rest, skip_special_tokens=True).strip()
        return (text, PROMPT_TEXT) if text else ("", NONE)


def _user_turn_frame(tokenizer: Any, template: str | None) -> tuple[str, str]:
    """What a template writes before and after the text of a user's turn, white space aside."""
    marks = ("mark-one", "mark-two", "mark-three")
    text = _rendered(tokenizer, template, ("user", "assistant", "user"), marks)
    if text is None:
        return "", ""
    first = text.partition(marks[0])[0]
    third, _, footer = text.rpartition(marks[2])
    return _common_suffix(first, third).strip(), footer.strip()


def _message_end(tokenizer: Any, template: str | None, header: str) -> str:
    """What a template writes between a user's message and the `header` of the user's next one."""
    marks = ("mark-one", "mark-two")
    text = _rendered(tokenizer, template, ("user", "user"), marks)
    if text is None:
        return ""
    between = text.partition(marks[0])[2].partition(marks[1])[0]
    return between.strip().removesuffix(header).strip()


def _rendered(
    tokenizer: Any, template: str | None, roles: Sequence[str], texts: Sequence[str]
) -> str | None:
    """A conversation as the template renders it; None where it refuses or leaves texts out."""
    if template is None:
        return None
    for wrap in (lambda text: [{"type": "text", "text": text}], lambda text: text):
        turns = [{"role": r, "content": wrap(text)} for r, text in zip(roles, texts, strict=True)]
        try:
            text: str = tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program; any failure only costs the shortcut
            logger.debug("chat template refused a probe: %s", error)
            continue
        if all(mark in text for mark in texts):
            return text
    return None


def _common_suffix(first: str, second: str) -> str:
    length = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        length += 1
    return first[len(first) - length :]
