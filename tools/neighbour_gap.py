"""The longest gap between two tokens of a stream beside a prompt with several long videos.

Plain vLLM and METok run on the same untrained checkpoint with the same flags. A text stream decodes
on one of them; then a prompt of about 12,000 dense tokens arrives. Servers take turns.

    python -m tools.neighbour_gap --rounds 2 -o result.json
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from metok_vllm.benchmarks.client.videos import Clip, video_bytes
from metok_vllm.benchmarks.environment import environment
from metok_vllm.benchmarks.throughput import servers
from metok_vllm.benchmarks.throughput.checkpoints import checkpoint

VIDEOS, FRAMES, BUDGET = 6, 40, 2048
FLAGS = (
    *("--max-num-batched-tokens", str(BUDGET)),
    *("--limit-mm-per-prompt", json.dumps({"video": VIDEOS, "image": 1})),
)
# The setting of each turn: the server, and the request's `metok` field.
TURNS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "plain vLLM": (servers.PLAIN, None),
    "METok": (servers.METOK, {}),
    "METok, stages 2 and 3": (servers.METOK, {"stages": [2, 3]}),
}
STREAM_TOKENS, BEFORE = 4000, 20


def long_request(model: str, seed: int, metok: dict[str, Any] | None) -> dict[str, Any]:
    """A chat completion of one token about `VIDEOS` videos of `FRAMES` frames each."""
    content: list[dict[str, Any]] = []
    for number in range(VIDEOS):
        clip = Clip("cuts", (seed, number), 2 * FRAMES, 4, 320, 240)
        data = base64.b64encode(video_bytes(clip)).decode()
        content.append({"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}})
    content.append({"type": "text", "text": f"What happens? {seed}"})
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "media_io_kwargs": {"video": {"num_frames": FRAMES}},
    }
    return body if metok is None else {**body, "metok": metok}


def longest_gap(url: str, model: str, request: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds of the longest gap, seconds of the long request, and its prompt tokens."""
    times: list[float] = []
    done = threading.Event()
    text = {
        "model": model,
        "messages": [{"role": "user", "content": "Go on."}],
        "max_tokens": STREAM_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }

    def read() -> None:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=text, timeout=600) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    times.append(time.perf_counter())
                if done.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    while len(times) < BEFORE:
        time.sleep(0.01)
    begin = time.perf_counter()
    answer = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=600)
    answer.raise_for_status()
    seconds = time.perf_counter() - begin
    done.set()
    reader.join()
    beside = [t for t in times if t >= begin - 1]
    gaps = [after - before for before, after in pairwise(beside)]
    return max(gaps), seconds, int(answer.json()["usage"]["prompt_tokens"])


def main() -> None:
    """Print a line for each turn and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with (
        checkpoint("cpu-reference") as made,
        servers.pair(made.model, (*made.flags, *FLAGS), made.metok_flags) as both,
    ):
        urls = {servers.PLAIN: both.plain.url, servers.METOK: both.metok.url}
        for number in range(args.rounds + 1):  # the first round warms up
            for name, (server, metok) in TURNS.items():
                request = long_request(made.model, number, metok)
                gap, seconds, tokens = longest_gap(urls[server], made.model, request)
                row = {"round": number, "turn": name, "longest_gap_s": round(gap, 3)}
                row |= {"request_s": round(seconds, 2), "prompt_tokens": tokens}
                print(json.dumps(row), flush=True)
                rows += [row] if number else []
    medians = {
        name: statistics.median(row["longest_gap_s"] for row in rows if row["turn"] == name)
        for name in TURNS
    }
    result = {"benchmark": "neighbour_gap", "flags": list(FLAGS), "environment": environment()}
    result |= {"rows": rows, "median_longest_gap_s": medians}
    print(json.dumps(medians))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
