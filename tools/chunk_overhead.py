"""Host time of a step that decodes 64 requests and prefills a chunk: plain vLLM and METok.

Two engines in one process take turns. Host time is the step without the model's forward pass.
Chunks are those that do not end their prompt.

    python -m tools.chunk_overhead -o result.json
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
from tools.step_overhead import LAYOUTS, TINY

RUNNING, BUDGET, FRAMES, ROUNDS, WARM_UP = 64, 512, 128, 15, 10


class Engine:
    """An engine with 64 decoding requests and timed forward passes."""

    def __init__(self, model: Path, metok: dict[str, Any] | None) -> None:
        settings = {"max_num_batched_tokens": BUDGET + RUNNING, "max_num_seqs": RUNNING + 1}
        self.llm = engines.start(model, metok, dtype="float32", **settings)
        # Without stage 1 both prefill prompts of equal length.
        self.options = {"stages": [2, 3]} if metok is not None else None
        self.forward_s = 0.0
        self.prompts = 0
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = core.scheduler
        module = core.model_executor.driver_worker.worker.model_runner.model
        inner = module.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.forward_s += time.perf_counter() - begin

        module.forward = timed

    def fill(self) -> None:
        """Start the decoding requests."""
        for number in range(RUNNING):
            self.add(number, 8, 8000)
        while any(request.num_output_tokens == 0 for request in self.scheduler.requests.values()):
            self.llm.llm_engine.step()

    def add(self, seed: int, frames: int, tokens: int) -> None:
        """Add a request about a video that depends on the seed."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        prompt = engines.question(seed, frames, self.options)
        self.llm.llm_engine.add_request(str(self.prompts), prompt, params)
        self.prompts += 1

    def round(self, seed: int) -> float:
        """Median host time of the steps with a chunk, in milliseconds."""
        self.add(seed, FRAMES, 1)
        newest = max(self.scheduler.requests.values(), key=lambda request: request.arrival_time)
        # The first chunk comes with the encoder, which vLLM runs outside of the forward pass.
        self.llm.llm_engine.step()
        host = []
        while newest.num_computed_tokens + BUDGET < newest.num_prompt_tokens:
            self.forward_s = 0.0
            begin = time.perf_counter()
            self.llm.llm_engine.step()
            host.append((time.perf_counter() - begin - self.forward_s) * 1e3)
        while newest.request_id in self.scheduler.requests:
            self.llm.llm_engine.step()
        return statistics.median(host)


def main() -> None:
    """Print the medians and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    metok = {"pruning_layers": LAYOUTS[4], "alignment_mode": "none"}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        engines.write_config(model, TINY)
        both = {"plain": Engine(model, None), "metok": Engine(model, metok)}
        for engine in both.values():
            engine.fill()
        rounds: dict[str, list[float]] = {name: [] for name in both}
        for number in range(WARM_UP + ROUNDS):
            for name, engine in both.items():
                host = engine.round(1000 + number)
                if number >= WARM_UP:
                    rounds[name].append(host)
    ratios = [b / a for a, b in zip(rounds["plain"], rounds["metok"], strict=True)]
    found = {f"{name}_host_ms": round(statistics.median(v), 3) for name, v in rounds.items()}
    found |= {"ratio": round(statistics.median(ratios), 3)}
    found |= {"ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3)}
    result: dict[str, Any] = {"benchmark": "chunk_overhead", "running": RUNNING, "budget": BUDGET}
    result |= {"decoder": vars(TINY), "environment": environment(), **found}
    print(json.dumps(found))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
