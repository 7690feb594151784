"""The next question about a video: what vLLM's own prefix cache holds of the first one.

Requests without stages 2 and 3 have no plan, so only their key decides: a rule that looks at no
question, a question that stays the same, or none. With these stages the prompts themselves are
recorded (test_turns.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.demo import MODEL_DIR
from tests.engine.engines import reset_caches
from tests.engine.prompts import answer, logprobs, token_ids, video
from tests.models.test_query import rendered, said, user

pytestmark = pytest.mark.slow

CLIP = video(11, (4, 11, 3, 6, 8))
FIRST, SECOND = "a red ball rolls across the grass", "where does the small boat sail tonight?"
TURNS = [user(FIRST, "video"), said("a boat"), user(SECOND)]
ALONE = {"stages": [1]}
CONVERSATION = {**ALONE, "focus": "conversation"}


def ask(engine: Any, turns: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    tokenizer = engine.get_tokenizer()
    template = (MODEL_DIR / "chat_template.jinja").read_text()
    prompt = {
        "prompt_token_ids": rendered(tokenizer, template, turns),
        "multi_modal_data": {"video": [CLIP]},
        "mm_processor_kwargs": {"metok": options},
    }
    return answer(engine, [prompt])[0]


def of_video(output: Any) -> int:
    """The prompt's tokens up to the end of the video."""
    ids = list(output.prompt_token_ids)
    return len(ids) - ids[::-1].index(max(set(ids), key=ids.count))


@pytest.mark.parametrize(
    "options",
    [{"rule": rule, "rule_keep": 0.3} for rule in ("evs", "vidcom2", "vcast", "random")]
    + [CONVERSATION, {**ALONE, "focus": "video"}, {**ALONE, "focus_text": "a ball"}]
    + [{"focus": "conversation"}, {"focus": "conversation", "stages": [1, 2]}],
    ids=str,
)
def test_the_next_turn_reads_the_prefix_cache(metok: Any, options: dict[str, Any]) -> None:
    reset_caches(metok)
    alone = ask(metok, TURNS, options)
    reset_caches(metok)
    ask(metok, TURNS[:1], options)
    block = metok.llm_engine.vllm_config.cache_config.block_size
    found = ask(metok, TURNS, options)
    assert found.num_cached_tokens >= of_video(found) // block * block > 0
    assert token_ids(found) == token_ids(alone)
    assert logprobs(found) == pytest.approx(logprobs(alone), abs=1e-3)


@pytest.mark.parametrize(
    "options", [{"rule": "vcast"}, {**ALONE, "focus": "video"}, {"focus": "video"}], ids=str
)
def test_another_question_reads_it_too(metok: Any, options: dict[str, Any]) -> None:
    reset_caches(metok)
    ask(metok, [user(FIRST, "video")], options)
    found = ask(metok, [user(SECOND, "video")], options)
    block = metok.llm_engine.vllm_config.cache_config.block_size
    assert found.num_cached_tokens >= of_video(found) // block * block > 0


@pytest.mark.parametrize(
    ("first", "options"),
    [
        (TURNS[:1], ALONE),  # the last question selects
        ([user(SECOND, "video")], CONVERSATION),
        (TURNS[:1], {}),
        ([user(SECOND, "video")], {"focus": "conversation"}),
    ],
    ids=["turn", "another question", "turn, all stages", "another question, all stages"],
)
def test_what_another_question_selected_is_not_read(
    metok: Any, first: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    reset_caches(metok)
    alone = ask(metok, TURNS, options)
    reset_caches(metok)
    ask(metok, first, options)
    found = ask(metok, TURNS, options)
    assert found.num_cached_tokens < of_video(found) - 100
    assert token_ids(found) == token_ids(alone)
