"""Host time of a decode step: plain vLLM, METok's engine with METok off, and with METok on.

Three engines in one process run the same number of requests and take turns in rounds of steps.
Disturbances of the machine then affect all of them. Host time is the step without the model's
forward pass and the encoding of videos: scheduling, inputs, metadata, sampling, outputs.

    python -m tools.step_overhead --running 1 8 24 64 -o result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.environment import environment
from tools import engines

TINY = engines.Decoder(layers=8, hidden=128, heads=4, kv_heads=2, intermediate=512)
LAYOUTS = {4: [2, 4, 6], 8: [1, 3, 5]}  # cache groups -> boundaries
FRAMES, STEPS, ROUNDS, WARM_UP = 8, 20, 15, 10


class Engine:
    """An engine with timed forward passes."""

    def __init__(
        self, name: str, model: Path, metok: dict[str, Any] | None, **settings: Any
    ) -> None:
        self.name = name
        settings = {"max_num_seqs": 64, **settings}
        self.llm = engines.start(model, metok, dtype="float32", **settings)
        self.options = {"enabled": name != "off"} if metok is not None else None
        self.forward_s = 0.0
        core = self.llm.llm_engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        runner._model_forward = self._timed(runner._model_forward)
        runner._execute_mm_encoder = self._timed(runner._execute_mm_encoder)

    def _timed(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.forward_s += time.perf_counter() - begin

        return timed

    def fill(self, running: int, tokens: int | None = None) -> None:
        """Start `running` requests, of `tokens` tokens each, and step until all of them decode."""
        from vllm import SamplingParams

        tokens = tokens or WARM_UP + ROUNDS * STEPS + running + 50
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        for number in range(running):
            prompt = engines.question(number, FRAMES, self.options)
            self.llm.llm_engine.add_request(f"{self.name}-{number}", prompt, params)
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        while len(scheduler.running) < running or any(
            request.num_output_tokens == 0 for request in scheduler.running
        ):
            self.llm.llm_engine.step()
        for _ in range(WARM_UP):
            self.llm.llm_engine.step()

    def step(self) -> tuple[float, float]:
        """Host time and step time of a step, in milliseconds."""
        self.forward_s = 0.0
        begin = time.perf_counter()
        self.llm.llm_engine.step()
        step_s = time.perf_counter() - begin
        return (step_s - self.forward_s) * 1e3, step_s * 1e3

    def round(self) -> tuple[float, float]:
        """Median host time and step time of a round, in milliseconds."""
        host, whole = zip(*(self.step() for _ in range(STEPS)), strict=True)
        return statistics.median(host), statistics.median(whole)

    def empty(self) -> None:
        """Abort all requests."""
        ids = list(self.llm.llm_engine.engine_core.engine_core.scheduler.requests)
        self.llm.llm_engine.abort_request(ids, internal=True)
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()
        self.llm.llm_engine.step()


def measure(model: Path, groups: int, running: list[int]) -> list[dict[str, Any]]:
    """The medians over rounds for each number of running requests."""
    metok = {"pruning_layers": LAYOUTS[groups], "alignment_mode": "none"}
    three = [Engine("plain", model, None), Engine("off", model, metok), Engine("on", model, metok)]
    results = []
    for count in running:
        for engine in three:
            engine.fill(count)
        rounds: dict[str, list[tuple[float, float]]] = {engine.name: [] for engine in three}
        for _ in range(ROUNDS):
            for engine in three:
                rounds[engine.name].append(engine.round())
        for engine in three:
            engine.empty()
        row: dict[str, Any] = {"groups": groups, "running": count}
        for name, values in rounds.items():
            row[f"{name}_host_ms"] = round(statistics.median(v[0] for v in values), 3)
            row[f"{name}_step_ms"] = round(statistics.median(v[1] for v in values), 3)
        for name in ("off", "on"):
            added = [a[0] - b[0] for a, b in zip(rounds[name], rounds["plain"], strict=True)]
            row[f"{name}_added_ms"] = round(statistics.median(added), 3)
            ratio = [a[0] / b[0] for a, b in zip(rounds[name], rounds["plain"], strict=True)]
            row[f"{name}_host_ratio"] = round(statistics.median(ratio), 3)
        results.append(row)
    for engine in three:
        engines.stop(engine.llm)
    return results


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, nargs="+", default=[1, 8, 24, 64])
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8], choices=list(LAYOUTS))
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        engines.write_config(model, TINY)
        rows = [row for groups in args.groups for row in measure(model, groups, args.running)]
    result = {"benchmark": "step_overhead", "decoder": vars(TINY), "frames": FRAMES}
    result |= {"environment": environment(), "rows": rows}
    columns = list(rows[0])
    print(engines.table(columns, [[row[column] for column in columns] for row in rows]))
    print(json.dumps(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
