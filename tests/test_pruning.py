"""Selection keeps the tokens that the reference keeps, stage by stage, for all prompts of a step.

Rows, scores and events go in, rows come out: no model, but the engine's own geometry of the step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.engine.step import BatchGeometry, BatchPlans
from metok_vllm.models.cache_writer import KeptRowsWriter, StagedInput
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan, Pruning, VideoSpan
from metok_vllm.plan.step import StagedStep
from metok_vllm.pruning import Selection, TokenEvents
from tests.reference import pruning
from tests.reference.strategies import bounded

KEEP = Fraction(3, 5)
PRUNINGS = {
    "prune": Pruning((2,), KEEP, Fraction(0), Fraction(2, 3)),
    "prune and evict": Pruning((2, 3), KEEP, Fraction(0), Fraction(2, 3)),
    "prune and evict a part": Pruning((2, 3), KEEP, Fraction(1, 2), Fraction(2, 3)),
    "evict": Pruning((3,), KEEP, Fraction(0), Fraction(2, 3)),
    "evict a part": Pruning((3,), KEEP, Fraction(1, 2), Fraction(2, 3)),
    "fastv": Pruning((2,), KEEP, Fraction(0), Fraction(1), fastv_keep=Fraction(1, 4)),
}


@dataclass(frozen=True)
class Video:
    """Events and separators of one video, by token and by event."""

    event_of: list[int]
    key: list[bool]
    relevance: list[float]
    separators: list[int]

    def events(self) -> TokenEvents:
        fixed_N = torch.zeros(len(self.event_of), dtype=torch.bool)
        fixed_N[self.separators] = True
        return TokenEvents(
            torch.tensor(self.event_of),
            torch.tensor(self.key),
            torch.tensor(self.relevance),
            fixed_N if self.separators else None,
        )

    def pruned(self, wanted: Pruning) -> Pruning:
        last = len(self.event_of) - 1 in self.separators
        return replace(wanted, separators=len(self.separators), ends_in_separator=last)


@dataclass(frozen=True)
class Request:
    """One prompt of a step; `videos` by their key."""

    plan: PromptPlan
    videos: dict[str, Video]
    decode_keep: float

    def score(self, stage: int, position: int) -> float:
        """A float32 in [0, 1], often one that other tokens have as well."""
        rng = random.Random(f"{sorted(self.videos)} {stage} {position}")
        value = rng.choice([rng.randint(0, 4) / 4, rng.random()])
        return float(np.float32(value))


@st.composite
def videos(draw: st.DrawFn) -> Video:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    event_of = [event for event, size in enumerate(sizes) for _ in range(size)]
    tokens = st.integers(0, len(event_of) - 1)
    return Video(
        event_of,
        [draw(st.booleans()) for _ in sizes],
        [draw(st.integers(0, 3)) / 4 for _ in sizes],
        sorted(draw(st.just(set[int]()) | st.sets(tokens))),
    )


@st.composite
def requests(draw: st.DrawFn, name: str) -> Request:
    wanted = PRUNINGS[draw(st.sampled_from(sorted(PRUNINGS)))]
    of_key, spans, end = {}, [], 0
    for number in range(draw(st.integers(1, 3))):
        start = end + draw(st.integers(0, 3))
        video, key = draw(videos()), f"{name} {number}"
        of_key[key] = video
        spans.append((key, start, len(video.event_of), video.pruned(wanted)))
        end = start + len(video.event_of)
    plan = PromptPlan.of(end + draw(st.integers(0, 3)), spans)
    assert plan is not None
    return Request(plan, of_key, float(wanted.decode_keep))


steps = st.integers(1, 3).flatmap(
    lambda count: st.tuples(*(requests(name=f"r{number}") for number in range(count)))
)


def step_of(prompts: Mapping[str, Request | None]) -> StagedStep:
    """A step with whole prompts; None: a request of another kind, with two rows."""
    plans = [prompt.plan if prompt is not None else None for prompt in prompts.values()]
    batch = BatchPlans.of(list(prompts), plans)
    scheduled_R = np.array([plan.prompt_tokens if plan else 2 for plan in plans], dtype=np.int32)
    staged = BatchGeometry.of(batch, np.zeros_like(scheduled_R), scheduled_R, {}).staged
    assert staged is not None
    return staged


@dataclass(frozen=True)
class Stage:
    """Rows of a stage and those that are cached for decoding, as (request, position)."""

    ran: list[tuple[str, int]]
    held: list[tuple[str, int]]


def selected(
    prompts: Mapping[str, Request | None], events: Mapping[str, TokenEvents]
) -> Iterator[Stage]:
    """What Selection and the cache writer make of stages 1 to 3."""
    step = step_of(prompts)
    device = torch.device("cpu")
    selection = Selection(step, events.get, device)
    rows = [
        (name, position)
        for name, prompt in prompts.items()
        for position in range(prompt.plan.prompt_tokens if prompt is not None else 2)
    ]
    for stage in range(1, NUM_STAGES):
        if stage < NUM_STAGES - 1:
            scores = []
            for of_prompt in step.selecting():
                name, request = of_prompt.request_id, prompts[of_prompt.request_id]
                assert request is not None
                positions = [position for owner, position in rows if owner == name]
                scores.append(torch.tensor([request.score(stage, p) for p in positions]))
            selection.set_scores(scores, stage)
        index = selection.enter(stage)
        assert index is None or len(index) == step.num_rows[stage]
        rows = rows if index is None else [rows[row] for row in index.tolist()]
        none: list[list[object]] = [[]] * NUM_STAGES
        given = StagedInput(step, none, (), none)  # type: ignore[arg-type]
        row_K = KeptRowsWriter(given, selection, stage).row_K
        yield Stage(rows, [] if row_K is None else [rows[row] for row in row_K.tolist()])


def expected(name: str, request: Request) -> Iterator[Stage]:
    """The same for one prompt, from the reference."""
    plan, last = request.plan, request.plan.prompt_tokens
    present = {span.key: list(range(span.start, span.start + span.tokens)) for span in plan.videos}
    visual = {position for positions in present.values() for position in positions}
    text = [position for position in range(last) if position not in visual]
    scores: dict[int, float] = {}
    for stage in range(1, NUM_STAGES):
        ran, held = list(text), [position for position in text if position >= plan.first_visual]
        for span in plan.videos:
            if stage < NUM_STAGES - 1:
                scores |= {
                    position: request.score(stage, position) for position in present[span.key]
                }
            present[span.key] = staying(request, span, stage, present[span.key], scores)
            ran += present[span.key]
            held += cached(request, span, stage, present[span.key], scores)
        held = held if plan.evicts else []
        yield Stage([(name, p) for p in sorted(ran)], [(name, p) for p in sorted(held)])


def staying(
    request: Request, span: VideoSpan, stage: int, present: list[int], scores: dict[int, float]
) -> list[int]:
    if not request.plan.prunes or (request.plan.fastv and stage > 1):
        return present
    video, total = request.videos[span.key], span.counts.prefill[stage]
    event_of = [video.event_of[position - span.start] for position in present]
    of_events = (event_of, video.key, video.relevance)
    if request.plan.fastv:
        of_events = ([0] * len(present), [True], [0.0])
    values, fixed = [scores[p] for p in present], fixed_in(video, span, present)
    kept = pruning.staying(stage - 1, total, values, *of_events, fixed).kept
    return [present[index] for index in kept]


def cached(
    request: Request, span: VideoSpan, stage: int, present: list[int], scores: dict[int, float]
) -> list[int]:
    fixed = fixed_in(request.videos[span.key], span, present)
    share = request.decode_keep if stage < NUM_STAGES - 1 else 0.0
    (count,) = pruning.held_counts([len(present) - len(fixed)], share)
    kept = pruning.decode_kept([scores[p] for p in present], count, fixed).kept
    assert len(kept) == span.counts.decode[stage] or not request.plan.evicts
    return [present[index] for index in kept]


def fixed_in(video: Video, span: VideoSpan, present: list[int]) -> list[int]:
    return [i for i, position in enumerate(present) if position - span.start in video.separators]


@bounded
@given(steps)
def test_the_rows_of_every_stage_are_the_references(chosen: tuple[Request, ...]) -> None:
    """Rows between prompts belong to requests that nothing is dropped of."""
    prompts: dict[str, Request | None] = {}
    events: dict[str, TokenEvents] = {}
    for number, request in enumerate(chosen):
        prompts |= {f"p{number}": request, f"plain{number}": None}
        events |= {key: video.events() for key, video in request.videos.items()}
    found = list(selected(prompts, events))
    parts = [list(expected(f"p{number}", request)) for number, request in enumerate(chosen)]
    for stage, result in enumerate(found):
        ran, held = [], []
        for number, of_prompt in enumerate(parts):
            ran += [*of_prompt[stage].ran, (f"plain{number}", 0), (f"plain{number}", 1)]
            held += of_prompt[stage].held
        assert result.ran == ran
        assert result.held == held


# Ten tokens in two events; token 9 is a separator and ends the video, as do 0 and 4.
VIDEO = Video([0] * 5 + [1] * 5, [True, False], [0.5, 0.1], [0, 4, 9])


def request_of(kind: str, text_after: int) -> Request:
    wanted = PRUNINGS[kind]
    span = ("v", 2, 10, VIDEO.pruned(wanted))
    plan = PromptPlan.of(12 + text_after, [span])
    assert plan is not None
    return Request(plan, {"v": VIDEO}, float(wanted.decode_keep))


@pytest.mark.parametrize("kind", [kind for kind in PRUNINGS if kind != "fastv"])
@pytest.mark.parametrize("text_after", [3, 0])
def test_separators_run_and_are_held_in_every_stage(kind: str, text_after: int) -> None:
    """Also where the video's last separator is the prompt's last row."""
    request = request_of(kind, text_after)
    separators = {("p", 2 + token) for token in VIDEO.separators}
    for stage in selected({"p": request}, {"v": VIDEO.events()}):
        assert separators <= set(stage.ran)
        assert separators <= set(stage.held) or not request.plan.evicts
        assert stage.ran == sorted(stage.ran)


@pytest.mark.parametrize("kind", PRUNINGS)
@pytest.mark.parametrize("text_after", [3, 0])
def test_a_video_without_stored_events_keeps_the_planned_numbers(
    kind: str, text_after: int
) -> None:
    """Its best-scored tokens stand in for the separators; block tables and slots are those of the
    plan."""
    request = request_of(kind, text_after)
    (span,) = request.plan.videos
    last = 12 + text_after
    text = {("p", position) for position in (0, 1, *range(span.start + span.tokens, last))}
    before = {("p", position) for position in range(last)}
    for number, stage in enumerate(selected({"p": request}, {}), start=1):
        assert text <= set(stage.ran) <= before
        assert len(stage.ran) == len(set(stage.ran)) == len(text) + span.counts.prefill[number]
        if request.plan.evicts:
            assert len(stage.held) == len(text) - 2 + span.counts.decode[number]
            assert set(stage.held) <= set(stage.ran)
        if kind == "prune":
            entered = sorted(before - text)
            scores = [request.score(min(number, 2), position) for _, position in entered]
            count = [span.counts.prefill[number]]
            best = pruning.select(scores, [0] * len(scores), count).kept
            assert set(stage.ran) - text == {entered[index] for index in best}
        before = set(stage.ran)
