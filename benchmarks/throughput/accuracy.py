"""Whether the servers still answer rightly: questions asked of both after the timed rounds.

Event-QA's held-out videos for the demo model, a folder of the user's own for any other trained one.
A video has as many frames as those of the workload. Nothing here is timed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.stream import NO_TOKEN, Outcome
from metok_vllm.benchmarks.eventqa.clips import NEEDLE_LEAST, write_folder
from metok_vllm.benchmarks.eventqa.questions import KINDS
from metok_vllm.benchmarks.eventqa.story import LEAST_FRAMES
from metok_vllm.benchmarks.questions.asking import OUTPUT_LEN, body_of
from metok_vllm.benchmarks.questions.bootstrap import Draws, Estimate
from metok_vllm.benchmarks.questions.prompts import Asked, normalised, read_chance, read_folder
from metok_vllm.benchmarks.questions.settings import AS_SERVED
from metok_vllm.benchmarks.throughput.agreement import SHORT_HASH, Agreement, agreement
from metok_vllm.benchmarks.throughput.load import Load, send
from metok_vllm.errors import ConfigError

EVENT_QA = "event-QA"
QUESTIONS = 32  # for each number of frames, unless told otherwise
AT_ONCE = 4
NOT_YET = "its questions have not been asked yet"
# What a question adds to a request; log-probabilities are for the quality benchmark.
ASKED_FOR = ("messages", "max_tokens", "temperature", "media_io_kwargs")


@dataclass(frozen=True)
class QuestionSet:
    """Questions about videos of `frames` frames; `chance` is what guessing gets, by kind."""

    source: str
    frames: int
    asked: tuple[Asked, ...]
    chance: Mapping[str, float]

    def digest(self) -> str:
        """Equal for equal videos, questions, answers and frames."""
        whole = hashlib.sha256()
        for video in dict.fromkeys(a.video for a in self.asked):
            whole.update(hashlib.sha256(video.read_bytes()).digest())
        said = [(a.name, a.question, a.answer, a.frames) for a in self.asked]
        whole.update(repr(said).encode("utf-8", "surrogatepass"))
        return whole.hexdigest()[:SHORT_HASH]


@dataclass(frozen=True)
class Quality:
    """How often each server was right, by its name, in 0 to 1 with intervals over videos.

    `accuracy` is None where no right answers are known, `difference` is the second server's less
    the first's on the same questions, `agreement` that of their answers to these questions.
    """

    source: str
    frames: int
    digest: str
    videos: int
    questions: int
    chance: float | None
    failed: Mapping[str, int]
    accuracy: Mapping[str, Estimate | None]
    difference: Estimate | None
    agreement: Agreement | None

    @property
    def lacks(self) -> str | None:
        """Why this is no figure to stand beside a ratio; None where it is one."""
        if not any(self.failed.values()):
            return None
        counts = ", ".join(f"{count} of {name}" for name, count in self.failed.items() if count)
        return f"questions failed: {counts}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@contextmanager
def event_qa(
    frames: Sequence[int], count: int, seed: int, parent: Path | None = None
) -> Iterator[list[QuestionSet]]:
    """`count` questions for each number of frames about held-out videos, which go with the context.

    Raises ConfigError for videos too short to have an event.
    """
    if min(frames) < LEAST_FRAMES:
        raise ConfigError(f"event-QA needs {LEAST_FRAMES} frames or more, got {min(frames)}")
    with tempfile.TemporaryDirectory(prefix="metok-questions-", dir=parent) as made:
        found = []
        for number in dict.fromkeys(frames):
            folder = Path(made) / str(number)
            a_video = len(KINDS) - (number < NEEDLE_LEAST)
            write_folder(folder, -(-count // a_video), number, "test", seed)
            found.append(replace(of_folder(folder, number, count), source=EVENT_QA))
        yield found


def of_folder(folder: Path, frames: int, count: int) -> QuestionSet:
    """At most `count` questions of a folder. Raises ConfigError as `read_folder`."""
    asked = tuple(read_folder(folder, frames, count))
    return QuestionSet(folder.name, frames, asked, read_chance(folder))


async def ask_all(
    endpoints: Sequence[Endpoint], questions: QuestionSet, timeout_s: float
) -> Quality:
    """Ask every server, one after the other, and mark the answers."""
    outcomes = {e.name: await _answers(e, questions, timeout_s) for e in endpoints}
    return marked(questions, outcomes)


def marked(questions: QuestionSet, outcomes: Mapping[str, Sequence[Outcome]]) -> Quality:
    """What the answers of each server come to; outcomes in the order of the questions."""
    asked = questions.asked
    draws = Draws([a.name for a in asked])
    right = {
        name: [_right(a, o) for a, o in zip(asked, found, strict=True)]
        for name, found in outcomes.items()
    }
    difference = both = None
    if len(outcomes) == 2:
        one, other = right.values()
        gains = [None if x is None or y is None else y - x for x, y in zip(one, other, strict=True)]
        difference = _estimate(draws, asked, gains)
        both = agreement(*outcomes.values())
    kinds = [a.kind for a in asked]
    known = set(kinds) <= questions.chance.keys()
    return Quality(
        source=questions.source,
        frames=questions.frames,
        digest=questions.digest(),
        videos=len({a.name for a in asked}),
        questions=len(asked),
        chance=sum(questions.chance[kind] for kind in kinds) / len(kinds) if known else None,
        failed={name: sum(o.error is not None for o in found) for name, found in outcomes.items()},
        accuracy={name: _estimate(draws, asked, values) for name, values in right.items()},
        difference=difference,
        agreement=both,
    )


async def _answers(endpoint: Endpoint, questions: QuestionSet, timeout_s: float) -> list[Outcome]:
    load = Load(AT_ONCE, timeout_s=timeout_s)
    outcomes: list[Outcome] = []
    # A few at a time: a request holds its whole video.
    for first in range(0, len(questions.asked), AT_ONCE):
        some = questions.asked[first : first + AT_ONCE]
        requests = [_request(number, asked) for number, asked in enumerate(some, start=first)]
        outcomes += (await send(endpoint, requests, load)).outcomes
    return [_complete(outcome) for outcome in outcomes]


def _request(number: int, asked: Asked) -> BenchRequest:
    whole = body_of(asked, AS_SERVED, output_len=OUTPUT_LEN)
    body = {name: whole[name] for name in ASKED_FOR}
    return BenchRequest(f"asked{number}", "video", body, asked.frames, 0.0)


def _complete(outcome: Outcome) -> Outcome:
    # Nothing to say is an answer, though a wrong one; a stream that breaks off is none.
    return replace(outcome, error=None) if outcome.error == NO_TOKEN else outcome


def _right(asked: Asked, outcome: Outcome) -> float | None:
    if asked.answer is None or outcome.error is not None:
        return None
    return float(normalised(outcome.text) == normalised(asked.answer))


def _estimate(
    draws: Draws, asked: Sequence[Asked], values: Sequence[float | None]
) -> Estimate | None:
    known = [(a.name, v) for a, v in zip(asked, values, strict=True) if v is not None]
    return draws.estimate([name for name, _ in known], [v for _, v in known])
