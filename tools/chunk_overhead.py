"""Host time of a step with a chunk of a video prompt beside 64 decoding requests: plain and METok.

Two engines take turns, prompt by prompt. Stage 1 keeps every token, so both have the same chunks.
Host time is the step without forward pass and encoding, as in tools.step_overhead.

    python -m tools.chunk_overhead -o result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tools import engines  # sets what vLLM reads at import

# isort: split
from metok_vllm.benchmarks.environment import environment
from tools.step_overhead import LAYOUTS, TINY, Engine

RUNNING, BUDGET = 64, 256
# Plain vLLM refuses a video of more tokens than the budget: 15 frames of 16 tokens, 8 videos.
VIDEOS, FRAMES, ROUNDS = 8, 15, 12
TOKENS = 1200  # of each decoding request: more than the steps of all rounds
METOK = {
    "pruning_layers": LAYOUTS[4],
    "alignment_mode": "none",
    "key_event_ratio": 1.0,
    "key_frames_per_event": FRAMES,
}


def chunk_steps(engine: Engine, seed: int) -> list[float]:
    """Host milliseconds of each step until the prompt's first token; the last is the last chunk."""
    from vllm import SamplingParams

    prompt = engines.question(seed, FRAMES, engine.options, videos=VIDEOS)
    llm = engine.llm.llm_engine
    llm.add_request(f"prompt-{seed}", prompt, SamplingParams(max_tokens=2, temperature=0))
    request = next(r for r in llm.engine_core.engine_core.scheduler.waiting)
    steps = []
    while request.num_output_tokens == 0:
        steps.append(engine.step()[0])
    while request.request_id in llm.engine_core.engine_core.scheduler.requests:
        llm.step()
    return steps


def main() -> None:
    """Print the figures and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    settings = {
        "max_num_seqs": RUNNING + 1,
        "max_num_batched_tokens": BUDGET,
        "limit_mm_per_prompt": {"video": VIDEOS, "image": 0},
    }
    rounds: dict[str, list[list[float]]] = {"plain": [], "on": []}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        engines.write_config(model, TINY)
        pair = [
            Engine("plain", model, None, **settings),
            Engine("on", model, METOK, **settings),
        ]
        for engine in pair:
            engine.fill(RUNNING, TOKENS)
        for seed in range(1000, 1000 + ROUNDS + 1):
            for engine in pair:
                steps = chunk_steps(engine, seed)
                if seed > 1000:  # the first is a warm-up
                    rounds[engine.name].append(steps)
        for engine in pair:
            engine.empty()
        for engine in pair:
            engines.stop(engine.llm)
    row: dict[str, Any] = {"running": RUNNING, "budget": BUDGET}
    chunks = {name: [statistics.median(s[:-1]) for s in found] for name, found in rounds.items()}
    last = {name: [s[-1] for s in found] for name, found in rounds.items()}
    for kind, values in (("chunk", chunks), ("last_chunk", last)):
        for name in ("plain", "on"):
            row[f"{name}_{kind}_host_ms"] = round(statistics.median(values[name]), 3)
        ratios = [on / plain for on, plain in zip(values["on"], values["plain"], strict=True)]
        row[f"{kind}_host_ratio"] = round(statistics.median(ratios), 3)
        row[f"{kind}_host_ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    row |= {f"{name}_steps": len(found[0]) for name, found in rounds.items()}
    result = {"benchmark": "chunk_overhead", "decoder": vars(TINY), "frames": FRAMES}
    result |= {"videos": VIDEOS, "rounds": ROUNDS, "environment": environment(), "row": row}
    print(json.dumps(row, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
