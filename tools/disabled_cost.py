"""Throughput of requests that disable METok, compared with plain vLLM in pairs.

The decoder has LLaVA-OneVision-0.5B's sizes and random weights. Both engines run in one process and
process the same requests in turn. The result is the median of the pairs' ratios.

    python -m tools.disabled_cost --pairs 7 -o result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.environment import environment
from tools import engines

HALF_BILLION = engines.Decoder(layers=24, hidden=896, heads=14, kv_heads=2, intermediate=4864)


def requests(count: int, frames: int, seed: int, plain: bool) -> list[dict[str, Any]]:
    """Questions about different videos, which disable METok unless the engine is plain."""
    options = None if plain else {"enabled": False}
    return [engines.question(seed + number, frames, options) for number in range(count)]


def main() -> None:
    """Print the pairs and their median, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()

    from vllm import SamplingParams

    params = SamplingParams(max_tokens=args.tokens, temperature=0, ignore_eos=True)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        engines.write_config(model, HALF_BILLION)
        settings: dict[str, Any] = {"dtype": "bfloat16", "max_num_seqs": args.requests}
        plain = engines.start(model, None, **settings)
        staged = engines.start(model, {"alignment_mode": "none"}, **settings)

        def rate(engine: Any, seed: int) -> float:
            batch = requests(args.requests, args.frames, seed, engine is plain)
            begin = time.perf_counter()
            engine.generate(batch, params, use_tqdm=False)
            return len(batch) / (time.perf_counter() - begin)

        rate(plain, 0), rate(staged, 0)  # warm-up
        pairs = []
        for number in range(1, args.pairs + 1):
            seed = 1000 * number
            order = (plain, staged) if number % 2 else (staged, plain)
            figures = {engine is plain: rate(engine, seed) for engine in order}
            pairs.append((figures[True], figures[False]))
            print(f"pair {number}: {figures[True]:.3f} and {figures[False]:.3f} requests/s")
    ratios = [off / stock for stock, off in pairs]
    result = {
        "benchmark": "disabled_cost",
        "decoder": vars(HALF_BILLION),
        "settings": {key: value for key, value in vars(args).items() if key != "output"},
        "environment": environment(),
        "requests_per_s": [{"plain": stock, "metok_off": off} for stock, off in pairs],
        "ratio_median": statistics.median(ratios),
    }
    print(f"METok off over plain vLLM, median of {args.pairs} pairs: {result['ratio_median']:.3f}")
    print(json.dumps(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
