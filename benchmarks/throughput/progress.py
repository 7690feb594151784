"""The progress of an experiment: a bar on a terminal, otherwise a line for each run."""

from __future__ import annotations

import statistics
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.throughput.measures import Measures
from metok_vllm.console import complain, err


class LiveProgress:
    """A context around an experiment, which implements `run.Watch` on stderr."""

    def __init__(self) -> None:
        console = err()
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[latest]}"),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._ttfts_s: list[float] = []
        self._failed = 0

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, title: str, requests: int) -> None:
        """A run of `requests` requests begins."""
        self._title, self._ttfts_s, self._failed = title, [], 0
        self._task = self._bar.add_task(title, total=requests, latest="")

    def outcome(self, outcome: Outcome) -> None:
        """A request of the run is complete."""
        if outcome.error is not None:
            self._failed += 1
        elif outcome.ttft_s is not None:
            self._ttfts_s.append(outcome.ttft_s)
        assert self._task is not None
        self._bar.update(self._task, advance=1, latest=self._latest())

    def end(self, measures: Measures | None) -> None:
        """The run is complete; `measures` is None after a warm-up."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if measures is None:
            if not self._live:
                complain(f"{self._title}: done")
            return
        line = f"{self._title}: {measures.requests_per_s:.3f} requests/s {self._latest()}"
        if self._live:
            self._bar.console.print(line, markup=False)
        else:
            complain(line)

    def _latest(self) -> str:
        parts = []
        if self._ttfts_s:
            parts.append(f"first token {statistics.median(self._ttfts_s):.2f} s")
        if self._failed:
            parts.append(f"{self._failed} failed")
        return ", ".join(parts)
