"""`metok chat VIDEO "QUESTION"`: asks a running server, streams its answer, shows the savings.

Further questions, given as arguments or typed below an answer, go on with the conversation.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from metok_vllm.config.methods import FOCUSES
from metok_vllm.config.presets import PRESETS
from metok_vllm.console import CommandError, err, out, write, write_json
from metok_vllm.server.commands.chat_reply import events, raise_for_error
from metok_vllm.server.commands.chat_request import RequestBody
from metok_vllm.server.savings import blocks_line, events_line, savings_table, unpruned_line


@dataclass
class Answer:
    """A streamed answer. Times are seconds from sending the first byte."""

    model: str
    text: str = ""
    finish_reason: str | None = None
    time_to_first_token_s: float | None = None
    total_s: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)
    metok: dict[str, Any] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok chat`."""
    parser.add_argument("video", metavar="VIDEO", help="a video file or an http(s) URL")
    parser.add_argument(
        "question",
        metavar="QUESTION",
        nargs="+",
        help="a question about the video; further ones go on with the conversation",
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="URL of the server (%(default)s)"
    )
    parser.add_argument("--model", help="served model name (default: the server's first)")
    api_key = os.environ.get("VLLM_API_KEY")
    parser.add_argument("--api-key", default=api_key, help="API key (default: $VLLM_API_KEY)")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens of the answer at most")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 for greedy sampling")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for data")
    parser.add_argument("--no-metok", action="store_true", help="answer with all visual tokens")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="METok preset (default: the server's)"
    )
    parser.add_argument("--num-events", type=int, help="events that the video is cut into")
    parser.add_argument(
        "--focus",
        choices=FOCUSES,
        help="the question that selects: the last (turn), the first (conversation) or none (video)",
    )
    parser.add_argument("--frames", type=int, help="frames to sample (default: the server's, 32)")
    parser.add_argument("--json", action="store_true", help="print answer and report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Ask and print. Raises CommandError if the server cannot be reached or answers an error."""
    _check(arguments)
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    timeout = httpx.Timeout(arguments.timeout, connect=10.0)
    url = arguments.url.rstrip("/").removesuffix("/v1")
    body = RequestBody(arguments)
    try:
        # A proxy from the environment cannot reach this machine's loopback.
        local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        with httpx.Client(
            base_url=url, headers=headers, timeout=timeout, trust_env=not local
        ) as client:
            body.model = arguments.model or _first_model(client)
            _converse(client, body, arguments)
    except httpx.InvalidURL as error:
        raise CommandError(f"not an address: {url!r} ({error})", 2) from error
    except httpx.UnsupportedProtocol as error:
        raise CommandError(f"--url must start with http:// or https://, got {url!r}", 2) from error
    except httpx.ConnectError as error:
        raise CommandError(f"no server answers at {url}; start one with `metok serve`") from error
    except httpx.TimeoutException as error:
        raise CommandError(f"the server at {url} did not answer in time") from error
    except httpx.HTTPError as error:
        raise CommandError(f"the connection to {url} broke: {error}") from error
    return 0


def _converse(client: httpx.Client, body: RequestBody, arguments: argparse.Namespace) -> None:
    """Ask each question with what was said before, then those that the user types."""
    for question in _questions(arguments):
        if body.questions and not arguments.json:
            write("\n")
        body.questions.append(question)
        answer = _ask(client, body, show=not arguments.json)
        body.answers.append(answer.text)
        if arguments.json:
            write_json(asdict(answer))
        else:
            _show_savings(answer)


def _questions(arguments: argparse.Namespace) -> Iterator[str]:
    """The given questions; on a terminal more of them, until an empty line."""
    yield from arguments.question
    while not arguments.json and sys.stdin.isatty() and sys.stdout.isatty():
        write("\nAnother question (Enter ends): ")
        try:
            question = input().strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def _check(a: argparse.Namespace) -> None:
    """Raise CommandError (status 2) for a request that would be pointless."""
    if not all(question.strip() for question in a.question):
        raise CommandError("QUESTION is empty: ask something about the video", 2)
    if a.no_metok and (a.preset or a.focus or a.num_events is not None):
        raise CommandError("--no-metok goes with neither --preset, --num-events nor --focus", 2)


def _first_model(client: httpx.Client) -> str:
    response = client.get("/v1/models")
    raise_for_error(response)
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CommandError("the server names no model; give one with --model") from error


def _ask(client: httpx.Client, body: RequestBody, show: bool) -> Answer:
    answer = Answer(model=body.model)
    started = time.perf_counter()
    length = len(body)
    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    content = _uploading(body, length) if body.path else iter(body)
    with client.stream(
        "POST", "/v1/chat/completions", content=content, headers=headers
    ) as response:
        if response.status_code != 200:
            response.read()
        raise_for_error(response)
        for chunk in events(response):
            _add_chunk(answer, chunk, started, show)
    answer.total_s = time.perf_counter() - started
    if show:
        write("\n")
    return answer


def _uploading(body: RequestBody, length: int) -> Iterator[bytes]:
    """The body, with a progress bar on a terminal."""
    console = err()
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=console, transient=True)
    with progress if console.is_terminal else nullcontext():
        task: TaskID = progress.add_task("uploading", total=length)
        for piece in body:
            yield piece
            progress.advance(task, len(piece))


def _add_chunk(answer: Answer, chunk: dict[str, Any], started: float, show: bool) -> None:
    answer.usage = chunk.get("usage") or answer.usage
    answer.metok = chunk.get("metok") or answer.metok
    for choice in chunk.get("choices") or []:
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        text = (choice.get("delta") or {}).get("content")
        if not text:
            continue
        if answer.time_to_first_token_s is None:
            answer.time_to_first_token_s = time.perf_counter() - started
        answer.text += text
        if show:
            write(text)


def _show_savings(answer: Answer) -> None:
    console = out()
    if answer.metok is None:
        console.print("\nThe server sent no METok report: METok's endpoint plugin is not loaded.")
        return
    console.print()
    console.print(savings_table(answer.metok))
    console.print(events_line(answer.metok), markup=False)
    for line in (unpruned_line(answer.metok), blocks_line(answer.metok)):
        if line is not None:
            console.print(line, markup=False)
    if answer.time_to_first_token_s is not None:
        console.print(
            f"first token after {answer.time_to_first_token_s:.2f} s, all {answer.total_s:.2f} s, "
            f"{answer.usage.get('prompt_tokens', '?')} prompt tokens, "
            f"{answer.metok.get('reused_tokens', 0)} of them from a prefix cache"
        )
