"""One streamed chat completion over HTTP with the arrival time of each token.

Every failure is an outcome with its `error` set; nothing is raised.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Kind

if TYPE_CHECKING:
    import aiohttp

DONE = b"[DONE]"
NO_TOKEN = "no token arrived"
Clock = Callable[[], float]


@dataclass(frozen=True)
class Outcome:
    """The result of a request. Times are seconds on the clock of the run.

    `token_times_s` has one entry for each chunk with tokens. `text` is all text, `content` the part
    after reasoning, `first_piece` the first text, `token_ids` the tokens if the server reports
    them, `metok` the METok server's report. `cached_tokens` of the prompt came from the prefix
    cache; None if the server does not say.
    """

    key: str
    kind: Kind
    frames: int
    video_seconds: float
    question: int
    turn: int
    started_s: float
    first_token_s: float | None
    token_times_s: tuple[float, ...]
    ended_s: float
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    error: str | None
    text: str
    content: str
    first_piece: str
    token_ids: tuple[int, ...] | None
    metok: Mapping[str, Any] | None

    @property
    def ttft_s(self) -> float | None:
        """Seconds until the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.started_s

    @property
    def end_to_end_s(self) -> float:
        """Seconds until the last token, as `vllm bench serve` counts them."""
        last = self.token_times_s[-1] if self.token_times_s else self.ended_s
        return last - self.started_s


class Answer:
    """A partial answer that collects chunks."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.pieces: list[str] = []
        self.content: list[str] = []
        self.token_ids: list[int] = []
        self.usage: dict[str, Any] = {}
        self.metok: dict[str, Any] | None = None
        self.error: str | None = None

    def add(self, chunk: dict[str, Any], time_s: float) -> None:
        """Add one chunk that arrived at `time_s`."""
        if chunk.get("error"):
            self.error = message_of(chunk)
        self.usage = chunk.get("usage") or self.usage
        self.metok = chunk.get("metok") or self.metok
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            text = (delta.get("reasoning") or "") + (delta.get("content") or "")
            ids = choice.get("token_ids")
            if carries_token(choice, delta, text):
                self.times_s.append(time_s)
                self.pieces.append(text)
                self.content.append(delta.get("content") or "")
                self.token_ids.extend(ids or [])


def carries_token(choice: Mapping[str, Any], delta: Mapping[str, Any], text: str) -> bool:
    """Whether a chunk holds a token. A token may be half a character and have no text yet.

    The first chunk of a stream gives the role and the last one the finish reason; both may come
    without a token.
    """
    if choice.get("token_ids") is not None:
        return bool(choice["token_ids"])
    if text:
        return True
    return "content" in delta and "role" not in delta and choice.get("finish_reason") is None


async def stream_answer(
    session: aiohttp.ClientSession, request: BenchRequest, body: bytes, clock: Clock
) -> Outcome:
    """Send `body` and read the stream to its end."""
    from aiohttp import ClientError

    answer = Answer()
    started_s = clock()
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(
            "v1/chat/completions", data=io.BytesIO(body), headers=headers, allow_redirects=False
        ) as response:
            if response.status != 200:
                answer.error = refusal(response.status, await response.read())
            elif not await _read(response, answer, clock):
                answer.error = answer.error or "the answer broke off before its end"
    except (ClientError, TimeoutError) as error:
        answer.error = f"{type(error).__name__}: {error}".removesuffix(": ")
    if answer.error is None and not answer.times_s:
        answer.error = NO_TOKEN
    return _outcome(request, answer, started_s, clock())


async def _read(response: aiohttp.ClientResponse, answer: Answer, clock: Clock) -> bool:
    """Read a stream into `answer`. Returns whether it ended with [DONE]."""
    done = False
    # A connection serves the next request only after its response was read to the end.
    async for data, time_s in events(response.content.iter_any(), clock):
        if data == DONE:
            done = True
            continue
        try:
            chunk = json.loads(data)
        except ValueError:
            answer.error = "a chunk is not JSON"
            return False
        answer.add(chunk, time_s)
    return done


async def events(pieces: AsyncIterator[bytes], clock: Clock) -> AsyncIterator[tuple[bytes, float]]:
    """The data of server-sent events, each with the arrival time of its last byte.

    Only newlines end a line: JSON may contain other line separators unescaped.
    """
    rest = b""
    async for piece in pieces:
        time_s = clock()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip(), time_s


def refusal(status: int, content: bytes) -> str:
    """A status and the message of the error envelope, if there is one."""
    try:
        return f"{status}: {message_of(json.loads(content))}"
    except ValueError:
        return f"{status}"


def message_of(envelope: Any) -> str:
    """The message of an OpenAI error envelope, in either of its shapes."""
    error = envelope.get("error", envelope) if isinstance(envelope, dict) else envelope
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no reason given")


def _outcome(request: BenchRequest, answer: Answer, started_s: float, ended_s: float) -> Outcome:
    return Outcome(
        key=request.key,
        kind=request.kind,
        frames=request.frames,
        video_seconds=request.video_seconds,
        question=request.question,
        turn=request.turn,
        started_s=started_s,
        first_token_s=answer.times_s[0] if answer.times_s else None,
        token_times_s=tuple(answer.times_s),
        ended_s=ended_s,
        prompt_tokens=int(answer.usage.get("prompt_tokens") or 0),
        cached_tokens=(answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        # Without a count by the server, each chunk counts as one token.
        completion_tokens=int(answer.usage.get("completion_tokens") or len(answer.times_s)),
        error=answer.error,
        text="".join(answer.pieces),
        content="".join(answer.content),
        first_piece=next((piece for piece in answer.pieces if piece), ""),
        token_ids=tuple(answer.token_ids) or None,
        metok=answer.metok,
    )
