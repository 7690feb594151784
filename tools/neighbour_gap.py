"""The longest gap between two tokens of a stream beside a long video prompt: plain and METok.

Both engines have the decoder of `cpu-reference`, of random weights, and the same budget. A text
request decodes while the prompt arrives. The gap is the longest step until the prompt has its
first token, because the stream gets one token in each step. Frames are prepared before.

    python -m tools.neighbour_gap -o result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from tools import engines  # sets what vLLM reads at import

# isort: split
from metok_vllm.benchmarks.environment import environment
from metok_vllm.benchmarks.throughput.checkpoints import checkpoint
from metok_vllm.demo import ALIGNMENT_DIR

BUDGET = 2048
# Plain vLLM refuses a video of more tokens than the budget: six of 40 frames and 49 tokens each.
VIDEOS, FRAMES = 6, 40
PRESETS = ("balanced", "quality")
TOKENS = 200  # of the stream: more than the steps of any prompt here


def start(model: Path, metok: dict[str, Any] | None) -> Any:
    """An engine with the budget, and all else at vLLM's default."""
    return engines.start(
        model,
        metok,
        dtype="bfloat16",
        load_format="auto",
        max_model_len=16384,
        max_num_batched_tokens=BUDGET,
        kv_cache_memory_bytes=1 << 30,
        limit_mm_per_prompt={"video": VIDEOS, "image": 0},
    )


def gap(engine: Any, seed: int, options: dict[str, Any] | None) -> dict[str, float]:
    """Seconds of the longest step beside the prompt, its first token, and its number of tokens."""
    from vllm import SamplingParams

    llm = engine.llm_engine
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    llm.add_request("stream", {"prompt": "<|im_start|>user Go on<|im_end|>"}, params)
    for _ in range(4):
        llm.step()
    prompt = engines.question(seed, FRAMES, options, videos=VIDEOS)
    llm.add_request("prompt", prompt, SamplingParams(max_tokens=1, temperature=0))
    began, steps, prompt_tokens = time.perf_counter(), [], 0
    while not prompt_tokens:
        before = time.perf_counter()
        outputs = llm.step()
        steps.append(time.perf_counter() - before)
        by_name = {output.request_id: output for output in outputs}
        assert "stream" in by_name, "the stream got no token in a step"
        if "prompt" in by_name:
            prompt_tokens = len(by_name["prompt"].prompt_token_ids)
    found = {"gap_s": max(steps), "first_token_s": time.perf_counter() - began}
    llm.abort_request(["stream"])
    while llm.has_unfinished_requests():
        llm.step()
    found |= {"steps": len(steps), "prompt_tokens": prompt_tokens, "last_step_s": steps[-1]}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with checkpoint("cpu-reference") as reference:
        model = Path(reference.model)
        metok = start(model, {"alignment_model": str(ALIGNMENT_DIR)})
        plain = start(model, None)
        for seed in range(args.rounds + 1):
            found = {"plain": gap(plain, seed, None)}
            for preset in PRESETS:
                found[preset] = gap(metok, seed, {"preset": preset})
            if seed:  # the first is a warm-up
                rows.append(found)
        engines.stop(plain)
        engines.stop(metok)
    medians = {
        name: {key: statistics.median(row[name][key] for row in rows) for key in rows[0][name]}
        for name in rows[0]
    }
    ratios = {
        name: [round(row[name]["gap_s"] / row["plain"]["gap_s"], 3) for row in rows]
        for name in PRESETS
    }
    result = {"benchmark": "neighbour_gap", "checkpoint": "cpu-reference", "budget": BUDGET}
    result |= {"videos": VIDEOS, "frames": FRAMES, "environment": environment(), "rounds": rows}
    result |= {"medians": medians, "gap_ratios": ratios}
    columns = ["engine", *medians["plain"]]
    print(engines.table(columns, [[name, *row.values()] for name, row in medians.items()]))
    print(json.dumps(ratios))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
