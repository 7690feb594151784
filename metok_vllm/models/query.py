"""The user's question, found in the token ids of a rendered prompt.

The multimodal processor sees token ids only, whoever sent the request (HTTP, `LLM.chat`, a raw
prompt), so the question is read back from them: the text of a user's turn, recognised by what the
chat template puts around one. Messages of the user that follow each other are one turn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from metok_vllm.config.methods import CONVERSATION, TURN

logger = logging.getLogger(__name__)

USER_TURN, PROMPT_TEXT, NONE = "user_turn", "prompt_text", "none"
FOCUS_TEXT, NO_QUESTION = "focus_text", "video"  # the text of a setting; none is wanted


class QueryFinder:
    """Finds the question. `template` is the chat template that prompts are rendered with.

    `media_token_ids` are no part of a question; `video_token_id` is a video's among them.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        media_token_ids: Sequence[int],
        video_token_id: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.video_token_id = video_token_id
        self.media_token_ids = frozenset(media_token_ids)
        self.header, self.footer = _user_turn_frame(tokenizer, template)
        self.end = _message_end(tokenizer, template, self.header)
        self.end_ids = self._end_ids()

    def find(self, prompt_ids: Sequence[int], focus: str = TURN) -> tuple[str, str]:
        """The question and where it came from: `user_turn`, `prompt_text` or `none`.

        It is that of the last turn with words, or for a conversation of the first one from the
        first video on.
        """
        text = self._text(prompt_ids)
        if not self.header or self.header not in text:
            return self._after_media(prompt_ids)
        turns = self._turns(text)
        if focus == CONVERSATION:
            videos = (i for i, token in enumerate(prompt_ids) if token == self.video_token_id)
            before = self._turns(self._text(prompt_ids[: next(videos, 0)]))
            first = max(len(before) - 1, 0)
            turns = [*turns[:first], *reversed(turns[first:])]
        turn = next((turn for turn in reversed(turns) if turn), "")
        return (turn, USER_TURN) if turn else ("", NONE)

    def _text(self, prompt_ids: Sequence[int]) -> str:
        kept = [token for token in prompt_ids if token not in self.media_token_ids]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def _turns(self, text: str) -> list[str]:
        """The user's words between two answers, in order; empty where there are none."""
        turns: list[list[str]] = [[]]
        for message in text.split(self.header)[1:]:
            said, answered, _ = message.partition(self.footer) if self.footer else (message, "", "")
            if not answered:
                said = said.strip().removesuffix(self.end)
            turns[-1].append(said.strip())
            if answered:
                turns.append([])
        turns = [turn for turn in turns if turn]
        return ["\n".join(word for word in turn if word) for turn in turns]

    def _end_ids(self) -> tuple[int, ...]:
        """The special token that ends a user's message, if the template has one."""
        footer = self.tokenizer(self.footer, add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        return tuple(token for token in footer if token in special)[:1]

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
