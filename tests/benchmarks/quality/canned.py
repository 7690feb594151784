"""A METok server with canned answers, and a folder of questions that go with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.videos import Clip, encode
from metok_vllm.benchmarks.quality.geometry import Geometry
from tests.benchmarks.throughput.openai_server import MODEL, body_of, reply, respond
from tests.layouts import square
from tests.server.http_servers import served

BLOCK = 16
TEXT = 11  # tokens of every prompt that are no video
GEOMETRY = Geometry(
    layers=12, kv_heads=2, head_size=32, value_bytes=4, video=partial(square, grid=8)
)
LAYERS = [2, 4, 8]  # stages of 2, 2, 4 and 4 layers, so six groups of two

Say = Callable[[str, dict[str, Any] | None], str]


@dataclass
class CannedServer:
    """Answers with `say(question, metok)`.

    With METok it holds a quarter of the tokens in its first stage and none later, and the first
    token has half the probability.
    """

    say: Say
    report: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/models":
            await reply(send, 200, {"data": [{"id": MODEL}]})
        elif scope["path"] == "/metrics":
            text = f'vllm:cache_config_info{{block_size="{BLOCK}",num_gpu_blocks="99"}} 1.0\n'
            await respond(send, 200, text.encode(), b"text/plain")
        else:
            await self.chat(await body_of(receive), send)

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        self.bodies.append(body)
        question = body["messages"][0]["content"][1]["text"]
        metok = body.get("metok")
        text = self.say(question, metok)
        if text == "refuse":
            await reply(send, 503, {"error": {"message": "draining"}})
            return
        if text == "too many frames":
            await reply(send, 400, {"error": {"message": "num_frames is over 128"}})
            return
        off = metok == {"enabled": False}
        frames = body["media_io_kwargs"]["video"]["num_frames"]
        dense = frames * 16 + 1
        encoded = dense if off else dense // 4
        likely = 0.8 if off else 0.4
        first = {7: likely, 8: 1 - likely - 0.1}
        wanted = body.get("logprob_token_ids", list(first))
        top = [{"token": f"token_id:{t}", "logprob": math.log(first[t])} for t in wanted]
        choice = {"message": {"content": text}, "logprobs": {"content": [{"top_logprobs": top}]}}
        usage = {"prompt_tokens": encoded + TEXT}
        answer: dict[str, Any] = {"choices": [choice], "usage": usage}
        if self.report:
            flops = 1000 * frames
            answer["metok"] = {
                "visual_tokens": {
                    "dense": dense,
                    "encoded": encoded,
                    "decode": [] if off else [encoded, 0, 0, 0],
                },
                "pruning_layers": LAYERS,
                "kv_blocks": {"dense": 60, "decode": 60 if off else 15},
                "decoder_prefill_flops": {"dense": flops, "metok": flops if off else flops // 5},
                "unpruned": None,
            }
        await reply(send, 200, answer)


@contextmanager
def canned_server(server: CannedServer) -> Iterator[Endpoint]:
    """The server on loopback."""
    with served(server) as port:
        yield Endpoint("server", f"http://127.0.0.1:{port}", MODEL)


def write_folder(folder: Path, videos: int, questions: list[dict[str, str]]) -> Path:
    """Small clips `0.mp4`, `1.mp4`, ... of eight frames, and every question about each of them."""
    folder.mkdir(exist_ok=True)
    listed = []
    for number in range(videos):
        name = f"{number}.mp4"
        (folder / name).write_bytes(encode(Clip("cuts", (number,), 8, 4, 32, 32)))
        listed += [{"video": name, **question} for question in questions]
    (folder / "questions.json").write_text(json.dumps(listed))
    return folder
