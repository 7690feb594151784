"""`metok demo`: one question about the sample video, dense and with METok, beside each other.

Starts a real server with the embedded model, asks it with the official `openai` client, and ends
it again. Any failure ends with a status other than 0.
"""

from __future__ import annotations

import argparse
import base64
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.table import Table

from metok_vllm.server.commands.console import CommandError, complain, err, out
from metok_vllm.server.commands.savings import (
    count,
    deeper_layers,
    events_line,
    flop_count,
    share_saved,
    unpruned_line,
)

if TYPE_CHECKING:
    from metok_vllm.server.commands.child_server import ChildServer

READY_S = 300.0
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Run:
    """One streamed answer. Times are seconds from sending the request."""

    text: str
    first_token_s: float
    total_s: float
    prompt_tokens: int
    metok: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok demo`."""
    parser.add_argument("--question", help="default: one that fits the sample video")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--runs", type=_positive, default=3, help="timed runs of each kind")
    parser.add_argument("--keep", action="store_true", help="leave the server running until Ctrl-C")
    parser.add_argument(
        "--timeout", type=float, default=READY_S, help="seconds to wait for the server"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve, ask twice, compare, end. Raises CommandError for whatever goes wrong."""
    try:
        from metok_vllm.server.commands.child_server import SERVE, ChildServer
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
    console.print("Server ended; none of its processes is left.")
    return 0


def compare(server: ChildServer, arguments: argparse.Namespace) -> None:
    """Ask dense and with METok and print both. Raises CommandError where figures do not agree."""
    import openai

    from metok_vllm.demo import SAMPLE_QUESTION
    from metok_vllm.server.commands.demo_answers import show_answers

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
            # In turns, so that a slow moment of the machine does not hit one kind alone.
            for number in range(arguments.runs):
                for enabled, runs in kinds.items():
                    name = f"run-{number}"
                    runs.append(_ask(client, model, question, enabled, arguments.max_tokens, name))
    except openai.OpenAIError as error:
        raise CommandError(f"a request failed: {error}") from error
    dense, metok = (with_median_times(kinds[enabled]) for enabled in (False, True))
    _show(question, dense, metok, arguments.runs)
    verify(dense, metok)
    if arguments.question is None:
        show_answers(lambda text, enabled: _ask(client, model, text, enabled, 16, "more").text)


def with_median_times(runs: Sequence[Run]) -> Run:
    """The first run, with the median times of all."""
    first_token_s = median(run.first_token_s for run in runs)
    return replace(
        runs[0], first_token_s=first_token_s, total_s=median(run.total_s for run in runs)
    )


def _ask(client: Any, model: str, question: str, enabled: bool, max_tokens: int, name: str) -> Run:
    """One streamed request. `name` is the video's identity in the server's caches."""
    from metok_vllm.demo import SAMPLE_VIDEO

    video = base64.b64encode(SAMPLE_VIDEO.read_bytes()).decode()
    content = [
        {
            "type": "video_url",
            "video_url": {"url": f"data:video/mp4;base64,{video}"},
            # Under another name it is another video, so no run profits from the one before.
            "uuid": f"metok-demo-{name}",
        },
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
        extra_body={"metok": {"enabled": enabled}},
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


def _show(question: str, dense: Run, metok: Run, runs: int) -> None:
    console = out()
    console.print(f"\nQuestion: {question}", markup=False)
    for name, answer in (("dense", dense), ("with METok", metok)):
        # Asked about what it does not know, a small model may say anything.
        shown = "".join(c if c.isprintable() else " " for c in answer.text)
        console.print(Panel(shown, title=f"answer, {name}", title_align="left"), markup=False)
    console.print(
        "The embedded demo model is small: it was trained for this project on drawn videos of this "
        "kind\nand answers questions of the kinds below, about this video and fresh ones.\n"
    )
    table = Table()
    for heading in ("", "dense", "METok", "saved"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    blocks_d, blocks_m = dense.metok["kv_blocks"], metok.metok["kv_blocks"]
    rows: list[tuple[str, float, float, Any]] = [
        ("visual tokens", *(r.metok["visual_tokens"]["encoded"] for r in (dense, metok)), count),
        *(
            (name, dense.metok["visual_tokens"]["encoded"], kept, count)
            for name, kept in deeper_layers(metok.metok)
        ),
        ("prompt tokens", dense.prompt_tokens, metok.prompt_tokens, count),
        ("KV blocks held after prefill", blocks_d["prefill"], blocks_m["prefill"], count),
        ("KV blocks held in decoding", blocks_d["decode"], blocks_m["decode"], count),
        (
            "decoder prefill",
            *(r.metok["decoder_prefill_flops"]["metok"] for r in (dense, metok)),
            flop_count,
        ),
        ("time to first token", dense.first_token_s, metok.first_token_s, _seconds),
        ("total time", dense.total_s, metok.total_s, _seconds),
    ]
    for name, before, after, show in rows:
        table.add_row(name, show(before), show(after), share_saved(before, after))
    console.print(table)
    console.print(events_line(metok.metok), markup=False)
    if (line := unpruned_line(metok.metok)) is not None:
        console.print(line, markup=False)
    console.print(
        f"Times: median of {runs} run(s) each, in turns, after a short warm-up request of each "
        "kind; no cache helps.\nThey include decoding the video and the vision tower, which "
        "METok does not shorten; on a model this small\nthey say little about a large one."
    )


def verify(dense: Run, metok: Run) -> None:
    """The server's figures must agree with each other, or the table means nothing."""
    tokens = metok.metok["visual_tokens"]
    if dense.metok["visual_tokens"]["encoded"] != tokens["dense"]:
        raise CommandError("the dense run and METok's report disagree on the dense visual tokens")
    if not tokens["encoded"] < tokens["dense"]:
        raise CommandError(f"METok saved no visual tokens: {tokens}")
    saved = tokens["dense"] - tokens["encoded"]
    if dense.prompt_tokens - metok.prompt_tokens != saved:
        raise CommandError(
            f"prompts differ by {dense.prompt_tokens - metok.prompt_tokens} tokens, "
            f"visual tokens by {saved}"
        )
    blocks_d, blocks_m = dense.metok["kv_blocks"], metok.metok["kv_blocks"]
    if blocks_d["prefill"] != blocks_m["dense"]:
        raise CommandError("the dense run and METok's report disagree on the dense KV blocks")
    if not blocks_m["decode"] < blocks_d["decode"]:
        raise CommandError(f"METok saved no KV blocks: {blocks_m}")
    if not metok.metok["events"]:
        raise CommandError("the server reported no events")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _keep(server: ChildServer) -> None:
    out().print(f"The server stays at {server.url} until Ctrl-C. Its log: {server.log}")
    try:
        server.process.wait()
    except KeyboardInterrupt:
        return
    raise CommandError(f"the server ended by itself, status {server.process.returncode}")
