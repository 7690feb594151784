"""`metok demo`: one question about the sample video, dense and with METok, side by side.

It starts a real server with the embedded model, asks it with the official `openai` client, and
stops it.
"""

from __future__ import annotations

import argparse
import base64
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from metok_vllm.console import CommandError, complain, err, out
from metok_vllm.server.commands.demo_report import (
    FRAMES,
    Run,
    show,
    show_answers,
    verify,
    with_median_times,
)

if TYPE_CHECKING:
    from metok_vllm.processes.child_server import ChildServer

READY_S = 300.0
WARM_UP_TOKENS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok demo`."""
    parser.add_argument("--question", help="default: a question about the sample video")
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens of an answer at most")
    parser.add_argument("--runs", type=_positive, default=3, help="timed runs of each kind")
    parser.add_argument("--keep", action="store_true", help="keep the server running until Ctrl-C")
    parser.add_argument(
        "--timeout", type=float, default=READY_S, help="seconds to wait for the server"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve, ask dense and with METok, compare, stop. Raises CommandError for any failure."""
    try:
        from metok_vllm.processes.child_server import SERVE, ChildServer
    except ModuleNotFoundError as error:
        raise CommandError("vLLM is not installed; `metok doctor` says how to get it") from error

    console = out()
    status = err()
    waiting = "starting the server with the demo model (20 to 60 s on a CPU)"
    with ChildServer([*SERVE, "--demo"]) as server:
        try:
            if not status.is_terminal:
                complain(waiting)
            with status.status(waiting) if status.is_terminal else nullcontext():
                ready_s = server.wait_until_ready(arguments.timeout)
            console.print(f"Server ready after {ready_s:.0f} s at {server.url}")
            compare(server, arguments)
        except CommandError:
            complain(f"the end of the server's log ({server.log}):\n{server.log_tail()}")
            raise
        if arguments.keep:
            _keep(server)
    console.print("Server stopped; none of its processes is left.")
    return 0


def compare(server: ChildServer, arguments: argparse.Namespace) -> None:
    """Ask dense and with METok and print both. Raises CommandError if the figures disagree."""
    import openai

    from metok_vllm.demo import SAMPLE_QUESTION

    question = arguments.question or SAMPLE_QUESTION
    client = openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=arguments.timeout,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    status = err()
    kinds: dict[bool, list[Run]] = {False: [], True: []}
    try:
        model = client.models.list().data[0].id
        with status.status("asking") if status.is_terminal else nullcontext():
            for enabled in kinds:
                _ask(client, model, question, enabled, WARM_UP_TOKENS, "warm-up")
            # Alternating, so that a slow phase of the machine affects both kinds.
            for number in range(arguments.runs):
                for enabled, runs in kinds.items():
                    name = f"run-{number}"
                    runs.append(_ask(client, model, question, enabled, arguments.max_tokens, name))
    except openai.OpenAIError as error:
        raise CommandError(f"a request failed: {error}") from error
    dense, metok = (with_median_times(kinds[enabled]) for enabled in (False, True))
    show(question, dense, metok, arguments.runs)
    verify(dense, metok)
    if arguments.question is None:
        show_answers(lambda text, enabled: _ask(client, model, text, enabled, 16, "more").text)


def _ask(client: Any, model: str, question: str, enabled: bool, max_tokens: int, name: str) -> Run:
    """One streamed request. `name` is its cache salt, so that no cache of another run is used."""
    from metok_vllm.demo import SAMPLE_VIDEO

    video = base64.b64encode(SAMPLE_VIDEO.read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{video}"}},
        {"type": "text", "text": question},
    ]
    started = time.perf_counter()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={
            "metok": {"enabled": enabled},
            "cache_salt": f"metok-demo-{name}",
            "media_io_kwargs": {"video": {"num_frames": FRAMES}},
        },
    )
    text, first_token_s, usage, report = "", None, None, None
    for chunk in stream:
        usage = chunk.usage or usage
        report = (chunk.model_extra or {}).get("metok") or report
        if chunk.choices and chunk.choices[0].delta.content:
            first_token_s = first_token_s or time.perf_counter() - started
            text += chunk.choices[0].delta.content
    total_s = time.perf_counter() - started
    if usage is None or report is None or first_token_s is None:
        absent = [
            name
            for name, value in (("usage", usage), ("metok", report), ("text", first_token_s))
            if value is None
        ]
        raise CommandError(f"the server's answer lacks {' and '.join(absent)}")
    return Run(text, first_token_s, total_s, usage.prompt_tokens, report)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _keep(server: ChildServer) -> None:
    out().print(f"The server runs at {server.url} until Ctrl-C. Its log: {server.log}")
    try:
        server.process.wait()
    except KeyboardInterrupt:
        return
    raise CommandError(f"the server stopped by itself with status {server.process.returncode}")
