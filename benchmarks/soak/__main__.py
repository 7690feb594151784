"""`python -m metok_vllm.benchmarks.soak --url URL`: a server's answers and memory over a long run.

Sends valid requests until memory is stable, then malformed requests, then new videos, and prints
the statuses and the memory of every process. The server must run on this machine with small caches
(`--mm-processor-cache-gb 0.1`), because its caches grow during the run. Exit status 1 if an answer
was faulty or a valid request fails at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx

from metok_vllm.benchmarks.client.processes import MemoryUse, listening_process, memory_use
from metok_vllm.benchmarks.soak.mutations import mutated_request
from metok_vllm.benchmarks.soak.requests import CHAT, Request, good_request, video_part
from metok_vllm.benchmarks.soak.run import Outcome, send, send_all

REST_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run the soak test and return the exit status."""
    options = _options(argv)
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    with httpx.Client(base_url=options.url, headers=headers, trust_env=False) as client:
        model: str = client.get("/v1/models").json()["data"][0]["id"]
    pid = listening_process(options.url)
    first = options.first_seed

    good = partial(numbered_request, model=model)
    mutated = partial(mutated_request, model=model)
    video = partial(new_video, model=model)
    runs: list[tuple[str, Callable[[int], Request], range]] = [
        ("warm-up", good, range(options.warmup)),
        ("warm-up of mutated requests", mutated, range(-options.warmup, 0)),
        ("mutated requests", mutated, range(first, first + options.requests)),
        ("warm-up of videos", video, range(-options.warmup, 0)),
        ("videos", video, range(options.videos)),
    ]
    results: list[dict[str, Any]] = []
    odd = 0
    for name, make, numbers in runs:
        if len(numbers):
            before = memory_use(pid)
            began = time.monotonic()
            outcome = send_all(options.url, headers, numbers, make, options.threads)
            seconds = time.monotonic() - began
            time.sleep(REST_S)
            after = memory_use(pid)
            results.append(_result(name, len(numbers), seconds, outcome, before, after))
            _print(results[-1])
            odd += len(outcome.odd)
    with httpx.Client(base_url=options.url, headers=headers, trust_env=False) as client:
        client.timeout = httpx.Timeout(60)
        status, _, _ = send(client, good_request(Random(0), model))
    print(f"a good request at the end: {status}")
    if options.output:
        text = json.dumps({"first_seed": first, "runs": results}, indent=1)
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    return 1 if odd or status != "200" else 0


def numbered_request(number: int, model: str) -> Request:
    """Valid request `number`."""
    return good_request(Random(number), model)


def new_video(number: int, model: str) -> Request:
    """A request about a video that no other number uses."""
    rng = Random(number)
    part = video_part(rng, 1 << 30)
    text = {"type": "text", "text": f"Which scene is number {number}?"}
    messages = [{"role": "user", "content": [part, text]}]
    return Request(CHAT, {"model": model, "messages": messages, "max_tokens": 2, "temperature": 0})


def _result(
    name: str, count: int, seconds: float, outcome: Outcome, before: MemoryUse, after: MemoryUse
) -> dict[str, Any]:
    return {
        "run": name,
        "requests": count,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(outcome.statuses.items())),
        "slowest_s": round(outcome.slowest_s, 2),
        "slowest_number": outcome.slowest,
        "odd": outcome.odd,
        "rss_mib_before": {role: round(mib) for role, mib in before.rss_mib.items()},
        "rss_mib_after": {role: round(mib) for role, mib in after.rss_mib.items()},
        "processes_before": dict(before.processes),
        "processes_after": dict(after.processes),
        "new_in_shared_memory": sorted(after.shared_memory - before.shared_memory),
    }


def _print(result: dict[str, Any]) -> None:
    print(f"{result['run']}: {result['requests']} in {result['seconds']} s, {result['statuses']}")
    print(f"  slowest {result['slowest_s']} s (number {result['slowest_number']})")
    for role, after in result["rss_mib_after"].items():
        before = result["rss_mib_before"].get(role, 0)
        more = f" ({(after - before) / before:+.1%})" if before else ""
        print(f"  {role}: {before} MiB, then {after} MiB{more}")
    print(f"  processes {result['processes_before']}, then {result['processes_after']}")
    if result["new_in_shared_memory"]:
        print(f"  left in shared memory: {result['new_in_shared_memory']}")
    for item in result["odd"][:20]:
        print(f"  odd: {item}")
    sys.stdout.flush()


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m metok_vllm.benchmarks.soak")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--warmup", type=int, default=1000, help="requests before each run")
    parser.add_argument("--requests", type=int, default=10_000, help="mutated requests")
    parser.add_argument("--videos", type=int, default=2_000, help="requests with a new video")
    parser.add_argument("--first-seed", type=int, default=1, help="number of the first mutation")
    parser.add_argument("--threads", type=int, default=8, help="concurrent requests")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
