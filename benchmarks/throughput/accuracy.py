"""The accuracy of the servers on questions with known answers, after the timed rounds.

The demo model uses event-QA's held-out videos, other trained models a folder of the user. Videos
have as many frames as those of the workload. Nothing here is timed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.stream import NO_TOKEN, Outcome
from metok_vllm.benchmarks.eventqa.clips import NEEDLE_LEAST, write_folder
from metok_vllm.benchmarks.eventqa.questions import KINDS
from metok_vllm.benchmarks.eventqa.story import LEAST_FRAMES
from metok_vllm.benchmarks.questions.bootstrap import Draws, Estimate
from metok_vllm.benchmarks.questions.prompts import (
    VideoQuestion,
    read_chance,
    read_folder,
)
from metok_vllm.benchmarks.questions.request import OUTPUT_LEN, body_of
from metok_vllm.benchmarks.questions.settings import AS_SERVED
from metok_vllm.benchmarks.throughput.agreement import SHORT_HASH, Agreement, agreement
from metok_vllm.benchmarks.throughput.load import Load, send
from metok_vllm.errors import ConfigError

EVENT_QA = "event-QA"
QUESTIONS = 32  # the default for each number of frames
CONCURRENCY = 4
PENDING = "its questions have not been sent yet"
# The fields of a question's request that are used; log-probabilities are not needed here.
BODY_FIELDS = ("messages", "max_tokens", "temperature", "media_io_kwargs")


@dataclass(frozen=True)
class QuestionSet:
    """Questions about videos of `frames` frames; `chance` is the accuracy of guessing by kind."""

    source: str
    frames: int
    questions: tuple[VideoQuestion, ...]
    chance: Mapping[str, float]

    def digest(self) -> str:
        """Equal for equal videos, questions, answers and frames."""
        whole = hashlib.sha256()
        for video in dict.fromkeys(q.video for q in self.questions):
            whole.update(hashlib.sha256(video.read_bytes()).digest())
        texts = [(q.name, q.asked, q.answer, q.frames) for q in self.questions]
        whole.update(repr(texts).encode("utf-8", "surrogatepass"))
        return whole.hexdigest()[:SHORT_HASH]


@dataclass(frozen=True)
class Quality:
    """The accuracy of each server by its name, in 0 to 1 with intervals over videos.

    `accuracy` is None without known answers. `difference` is the second server's accuracy minus the
    first's on the same questions, `agreement` that of their answers.
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
        """Why no speed ratio may be shown with this accuracy; None if it may."""
        if not any(self.failed.values()):
            return None
        counts = ", ".join(f"{count} of {name}" for name, count in self.failed.items() if count)
        return f"questions failed: {counts}"


@contextmanager
def event_qa(
    frames: Sequence[int], count: int, seed: int, parent: Path | None = None
) -> Iterator[list[QuestionSet]]:
    """`count` questions for each number of frames about held-out videos in a temporary folder.

    Raises ConfigError for videos too short for an event.
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
    questions = tuple(read_folder(folder, frames, count))
    return QuestionSet(folder.name, frames, questions, read_chance(folder))


async def measure_quality(
    endpoints: Sequence[Endpoint], questions: QuestionSet, timeout_s: float
) -> Quality:
    """Send the questions to one server after the other and mark the answers."""
    outcomes = {e.name: await _answers(e, questions, timeout_s) for e in endpoints}
    return mark(questions, outcomes)


def mark(question_set: QuestionSet, outcomes: Mapping[str, Sequence[Outcome]]) -> Quality:
    """The accuracy of each server; outcomes are in the order of the questions."""
    questions = question_set.questions
    names = [q.name for q in questions]
    draws = Draws(names)
    right = {
        name: [_right(q, o) for q, o in zip(questions, found, strict=True)]
        for name, found in outcomes.items()
    }
    difference = both = None
    if len(outcomes) == 2:
        one, other = right.values()
        gains = [None if x is None or y is None else y - x for x, y in zip(one, other, strict=True)]
        difference = draws.estimate(names, gains)
        both = agreement(*outcomes.values())
    kinds = [q.kind for q in questions]
    known = set(kinds) <= question_set.chance.keys()
    return Quality(
        source=question_set.source,
        frames=question_set.frames,
        digest=question_set.digest(),
        videos=len(set(names)),
        questions=len(questions),
        chance=sum(question_set.chance[kind] for kind in kinds) / len(kinds) if known else None,
        failed={name: sum(o.error is not None for o in found) for name, found in outcomes.items()},
        accuracy={name: draws.estimate(names, values) for name, values in right.items()},
        difference=difference,
        agreement=both,
    )


async def _answers(
    endpoint: Endpoint, question_set: QuestionSet, timeout_s: float
) -> list[Outcome]:
    load = Load(CONCURRENCY, timeout_s=timeout_s)
    outcomes: list[Outcome] = []
    # In small batches, because every request holds a complete video.
    for first in range(0, len(question_set.questions), CONCURRENCY):
        batch = question_set.questions[first : first + CONCURRENCY]
        requests = [_request(number, question) for number, question in enumerate(batch, first)]
        outcomes += (await send(endpoint, requests, load)).outcomes
    return [_complete(outcome) for outcome in outcomes]


def _request(number: int, question: VideoQuestion) -> BenchRequest:
    whole = body_of(question, AS_SERVED, output_len=OUTPUT_LEN)
    body = {name: whole[name] for name in BODY_FIELDS}
    return BenchRequest(f"question{number}", "video", body, question.frames, 0.0)


def _complete(outcome: Outcome) -> Outcome:
    # An empty answer is wrong, but it is no failure.
    return replace(outcome, error=None) if outcome.error == NO_TOKEN else outcome


def _right(question: VideoQuestion, outcome: Outcome) -> float | None:
    right = None if outcome.error is not None else question.is_right(outcome.text)
    return None if right is None else float(right)
