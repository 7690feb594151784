"""With too few blocks METok requests are preempted and resumed; their answers stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.checkpoints import Checkpoint
from tests.engine.engines import EnginePool
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts, make_prompt
from tests.reference.decoder import Generated, LanguageModel
from tests.reference.qwen_vl_config import QWEN3_VL

pytestmark = pytest.mark.slow

# Long enough that every request needs several more blocks while it decodes.
STEP, NEW_TOKENS, TOLERANCE = 320, 100, 1e-3
LONG, SHORT, OTHER = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Clip(2, (4, 4))
KINDS: dict[str, tuple[Parts, dict[str, Any]]] = {
    "all stages": ((5, LONG, 40), {"keep_ratio": 0.5}),
    "stages 2 and 3": ((9, SHORT, 23), {"stages": [2, 3], "decode_keep": 0.25}),
    "stage 3": ((5, OTHER, 27), {"stages": [3]}),
    "stage 2": ((5, SHORT, 58), {"stages": [2], "keep_ratio": 0.3}),
    "switched off": ((5, OTHER, 31), OFF),
    "text": ((70,), {}),
    "in chunks": ((20, SHORT, 200), {"stages": [2, 3]}),
    "two videos": ((7, SHORT, 9, OTHER, 15), {"stages": [2, 3]}),
}


def wide(value: Any) -> Any:
    """A further case of `make test-thorough`."""
    return pytest.param(value, marks=pytest.mark.thorough)


@pytest.fixture(scope="module", params=[STEP, STEP // 3], ids=["long steps", "short steps"])
def engine(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    staged_checkpoint: Path,
    staged_reference: LanguageModel,
) -> StagedEngine:
    """Four cache groups share 84 blocks: three of the prompts fit, or two that grow.

    With short steps a prompt takes up to four chunks, and may be preempted between two.
    """
    return StagedEngine(
        engines,
        staged_checkpoint,
        staged_reference,
        (2, 4, 6),
        max_num_batched_tokens=request.param,
        max_model_len=576,
        num_gpu_blocks_override=84,
    )


@pytest.fixture(scope="module")
def mixed(engine: StagedEngine) -> dict[str, tuple[Any, Generated]]:
    return {kind: without_ties(engine, *spec, NEW_TOKENS) for kind, spec in KINDS.items()}


@pytest.mark.parametrize(
    "arrivals",
    [
        wide([0] * 8),
        [0, 2, 4, 9, 1, 30, 14, 6],
        wide([20, 6, 9, 3, 2, 0, 1, 40]),
    ],
)
def test_preempted_and_resumed(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], arrivals: list[int]
) -> None:
    engine.reset_caches()
    answers = engine.answer([prompt for prompt, _ in mixed.values()], NEW_TOKENS, arrivals)
    preempted = 0
    for (_, expected), answer in zip(mixed.values(), answers, strict=True):
        assert answer is not None
        assert answer.error(expected) <= TOLERANCE
        preempted += answer.preemptions
    assert preempted > 0


@pytest.mark.parametrize(
    "kind", ["all stages", wide("stages 2 and 3"), wide("stage 3"), wide("stage 2"), "in chunks"]
)
def test_many_of_one_kind(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], kind: str
) -> None:
    """The same request eight times: a preempted one is of this kind."""
    engine.reset_caches()
    prompt, expected = mixed[kind]
    answers = engine.answer([prompt] * 8, NEW_TOKENS)
    for answer in answers:
        assert answer is not None
        assert answer.error(expected) <= TOLERANCE
    assert sum(answer.preemptions for answer in answers if answer is not None) > 0


@pytest.mark.parametrize("tokens", [wide(1), 17, wide(70)])
def test_neighbours_are_aborted_while_others_are_preempted(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], tokens: int
) -> None:
    engine.reset_caches()
    cases = list(mixed.values())[:4]
    neighbours = [make_prompt(*spec, seed=20) for spec in list(KINDS.values())[:4]]
    prompts = [*neighbours, *(prompt for prompt, _ in cases)]
    aborts = {number: tokens + number for number in range(len(neighbours))}
    answers = engine.answer(prompts, NEW_TOKENS, aborts=aborts)
    assert answers[: len(neighbours)] == [None] * len(neighbours)
    for (_, expected), answer in zip(cases, answers[len(neighbours) :], strict=True):
        assert answer is not None
        assert answer.error(expected) <= TOLERANCE


@pytest.mark.thorough
def test_prompts_with_text_inside_their_videos(
    engines: EnginePool, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    """Eight cache groups of one layer each, and four kinds of request in up to four chunks."""
    checkpoint = checkpoint_of(QWEN3_VL)
    engine = StagedEngine(
        engines,
        checkpoint.folder,
        checkpoint.language,
        (3, 5, 6),
        max_num_batched_tokens=STEP // 3,
        max_model_len=576,
        num_gpu_blocks_override=150,
    )
    kinds = [KINDS[kind] for kind in ("all stages", "stages 2 and 3", "switched off", "in chunks")]
    cases = [without_ties(engine, *kind, NEW_TOKENS) for kind in kinds] * 2
    for arrivals in ([0, 2, 4, 9, 1, 30, 14, 6], [0] * 8):
        engine.reset_caches()
        answers = engine.answer([prompt for prompt, _ in cases], NEW_TOKENS, arrivals)
        for (_, expected), answer in zip(cases, answers, strict=True):
            assert answer is not None
            assert answer.error(expected) <= TOLERANCE
        assert sum(answer.preemptions for answer in answers if answer is not None) > 0
