"""What guidellm (0.8) is given, and what it says: its program is installed apart from ours.

Its inter-token time is a request's time after its first token over its other tokens, which we call
the time per output token; single gaps it does not tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.request import BenchRequest

# By default it has a process for each request in flight; the other clients have one, and on few
# cores it is the measured server that pays for the rest. The environment's own value wins.
ONE_PROCESS = {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}


def write_scenario(
    folder: Path, endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int
) -> Path:
    """A scenario that sends the same messages and settings; its report is `report.json` beside.

    Raises ValueError where requests differ in more than their messages: guidellm says the rest
    once for all.
    """
    rest = [{k: v for k, v in request.body.items() if k != "messages"} for request in requests]
    if any(body != rest[0] for body in rest):
        raise ValueError("guidellm sends requests that differ in their messages alone")
    data = folder / "data.jsonl"
    lines = (json.dumps({"messages": r.body["messages"]}) for r in requests)
    data.write_text("\n".join(lines) + "\n")
    scenario = folder / "scenario.json"
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": endpoint.url,
            "model": endpoint.model,
            "validate_backend": False,
            "extras": {"body": rest[0] | dict(endpoint.extra_body)},
        },
        "profile": {"kind": "concurrent", "streams": [concurrency]},
        "constraints": [{"kind": "max_requests", "count": len(requests)}],
        "data": [{"kind": "json_file", "path": str(data)}],
        "outputs": [{"kind": "json", "path": str(folder / "report.json")}],
    }
    scenario.write_text(json.dumps({"spec": spec}))
    return scenario


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report in seconds, by our names; `answered` counts the requests."""
    (benchmark,) = report["benchmarks"]
    metrics = benchmark["metrics"]

    def of(name: str, what: str) -> float:
        spread = metrics[name]["successful"]
        return float(spread["percentiles"][what] if what == "p50" else spread[what])

    return {
        "answered": float(metrics["request_totals"]["successful"]),
        "requests_per_s": of("requests_per_second", "mean"),
        "output_tokens_per_s": of("output_tokens_per_second", "mean"),
        "ttft_s_p50": of("time_to_first_token_ms", "p50") / 1000,
        "per_output_token_s_p50": of("inter_token_latency_ms", "p50") / 1000,
        "end_to_end_s_p50": of("request_latency", "p50"),
        "ttft_s_mean": of("time_to_first_token_ms", "mean") / 1000,
        "end_to_end_s_mean": of("request_latency", "mean"),
    }
