"""One question to a server and its answer: text, first-token distribution, METok's report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.stream import refusal
from metok_vllm.benchmarks.questions.prompts import VideoQuestion, data_url, frames_in
from metok_vllm.benchmarks.questions.settings import Setting
from metok_vllm.errors import MetokError

OUTPUT_LEN = 16  # tokens of an answer, at most
TOP_LOGPROBS = 20  # a server's default limit
TOKEN_ID = "token_id:"
NO_REPORT = "the answer has no `metok` object: this server does not run METok"


@dataclass(frozen=True)
class Reply:
    """An answer, or the reason for its absence in `error`, with the `status` of a refusal.

    `first` maps token ids to log-probabilities of the first generated token; `metok` is the
    server's report.
    """

    text: str = ""
    first: Mapping[int, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    metok: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    status: int | None = None


async def send_question(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    question: VideoQuestion,
    setting: Setting,
    token_ids: Sequence[int] = (),
    output_len: int = OUTPUT_LEN,
    earlier: Sequence[VideoQuestion] = (),
) -> Reply:
    """Send a question under a setting. Every failure is a reply with its `error` set.

    `token_ids` are the tokens whose first log-probabilities are returned; without them, the most
    likely ones. `earlier` questions were asked and answered before.
    """
    try:
        body = body_of(question, setting, token_ids, output_len, earlier)
        body["model"] = endpoint.model
        response = await client.post("/v1/chat/completions", json={**body, **endpoint.extra_body})
    except httpx.HTTPError as error:
        return Reply(error=f"{type(error).__name__}: {error}".removesuffix(": "))
    except MetokError as error:
        return Reply(error=str(error))
    except OSError as error:
        # Its own text contains the whole path.
        return Reply(error=f"{question.name}: {error.strerror or type(error).__name__}")
    if response.status_code != 200:
        status = response.status_code
        return Reply(error=refusal(status, response.content), status=status)
    try:
        return _reply(response.json())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Reply(error=f"not an answer with log-probabilities: {type(error).__name__} {error}")


def body_of(
    question: VideoQuestion,
    setting: Setting,
    token_ids: Sequence[int] = (),
    output_len: int = OUTPUT_LEN,
    earlier: Sequence[VideoQuestion] = (),
) -> dict[str, Any]:
    """The body of the request, without its model."""
    frames = question.frames
    if setting.frames_share < 1:
        frames = setting.frames(question.frames, frames_in(question.video))
    body: dict[str, Any] = {
        "messages": messages_of([*earlier, question]),
        "max_tokens": output_len,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
        "return_tokens_as_token_ids": True,
        "media_io_kwargs": {"video": {"num_frames": frames}},
    }
    if setting.request is not None:
        body["metok"] = dict(setting.request)
    if token_ids:
        body["logprob_token_ids"] = list(token_ids)
    return body


def messages_of(questions: Sequence[VideoQuestion]) -> list[dict[str, Any]]:
    """A conversation about the video of the first question, up to the last one."""
    video = {"type": "video_url", "video_url": {"url": data_url(questions[0].video)}}
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        text = {"type": "text", "text": question.asked}
        messages.append({"role": "user", "content": [text] if number else [video, text]})
        messages.append({"role": "assistant", "content": question.answer or ""})
    return messages[:-1]


def _reply(response: Mapping[str, Any]) -> Reply:
    report = response.get("metok")
    if not report:
        return Reply(error=NO_REPORT)
    choice = response["choices"][0]
    tokens = choice["logprobs"]["content"]
    first = {_token(t["token"]): float(t["logprob"]) for t in tokens[0]["top_logprobs"]}
    text = choice["message"]["content"] or ""
    return Reply(text, first, int(response["usage"]["prompt_tokens"]), report)


def _token(name: str) -> int:
    if not name.startswith(TOKEN_ID):
        raise ValueError(f"a token without its id: {json.dumps(name)}")
    return int(name.removeprefix(TOKEN_ID))
