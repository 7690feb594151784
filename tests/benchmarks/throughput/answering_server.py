"""A streaming server with given answers, and a folder of their questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import Send

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.videos import Clip, encode
from tests.benchmarks.throughput.openai_server import KnownServer, chunk, known_server, reply

ANSWERS = {"Which colour?": "Red.", "How many?": "three", "Is there a star?": "yes"}


@dataclass
class AnsweringServer(KnownServer):
    """Answers from `answers`: "" ends at once, "refuse" is a 503. Other texts: as KnownServer."""

    answers: Mapping[str, str] | None = None

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        question = body["messages"][0]["content"][-1]["text"]
        answer = (self.answers or {}).get(question)
        if answer is None:
            await super().chat({**body, "messages": [{"content": question}]}, send)
            return
        self.bodies.append(body)
        if answer == "refuse":
            await reply(send, 503, {"error": {"message": "draining"}})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await chunk(send, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for word in answer.split():
            await chunk(send, {"choices": [{"delta": {"content": f"{word} "}}]})
        await chunk(send, {"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


@contextmanager
def answering(name: str, **other: str) -> Iterator[tuple[AnsweringServer, Endpoint]]:
    """A server with right answers, except `other` ones by the first word of the question."""
    answers = {q: other.get(q.split()[0], a) for q, a in ANSWERS.items()}
    server = AnsweringServer(first_s=0.02, gap_s=0.005, answers=answers)
    with known_server(server, name) as endpoint:
        yield server, endpoint


def write_folder(folder: Path, videos: int = 2) -> Path:
    """Every question of ANSWERS about each of `videos` small clips."""
    folder.mkdir()
    listed = []
    for number in range(videos):
        name = f"{number}.mp4"
        (folder / name).write_bytes(encode(Clip("cuts", (number,), 8, 4, 32, 32)))
        listed += [
            {"video": name, "question": q, "answer": a, "kind": q.split()[0]}
            for q, a in ANSWERS.items()
        ]
    (folder / "questions.json").write_text(json.dumps(listed))
    chance = {"Which": 0.125, "How": 0.25, "Is": 0.5}
    (folder / "chance.json").write_text(json.dumps(chance))
    return folder
