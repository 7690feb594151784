"""The question is found in token ids, however the prompt was made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metok_vllm.demo import MODEL_DIR
from metok_vllm.models.query import QueryFinder
from metok_vllm.torch_shims import ensure_torchvision_ops


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    ensure_torchvision_ops()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> str:
    path = MODEL_DIR / "chat_template.jinja"
    return path.read_text() if path.exists() else tokenizer.chat_template


@pytest.fixture(scope="module")
def finder(tokenizer: Any, template: str) -> QueryFinder:
    return QueryFinder(tokenizer, template, media(tokenizer), media(tokenizer)[1])


def media(tokenizer: Any) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(t) for t in ("<image>", "<video>")]


def rendered(tokenizer: Any, template: str, turns: list[dict[str, Any]]) -> list[int]:
    text = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def user(text: str, *kinds: str) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": kind} for kind in kinds]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_the_only_turn(tokenizer: Any, template: str, finder: QueryFinder) -> None:
    ids = rendered(tokenizer, template, [user("What is red?", "video")])
    assert finder.find(ids) == ("What is red?", "user_turn")


def test_the_last_turn_of_several(tokenizer: Any, template: str, finder: QueryFinder) -> None:
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user("What is red?", "video", "image"),
        said("A ball."),
        user("And where does it roll to?"),
    ]
    ids = rendered(tokenizer, template, turns)
    assert finder.find(ids) == ("And where does it roll to?", "user_turn")


def test_messages_that_follow_each_other(
    tokenizer: Any, template: str, finder: QueryFinder
) -> None:
    turns = [user("Hello", "image"), said("Hi."), user("What is red?"), user("Time: noon", "video")]
    ids = rendered(tokenizer, template, turns)
    assert finder.find(ids) == ("What is red?\nTime: noon", "user_turn")


def test_a_film_behind_the_question(tokenizer: Any, template: str, finder: QueryFinder) -> None:
    ids = rendered(tokenizer, template, [user("What is red?"), user("", "video")])
    assert finder.find(ids) == ("What is red?", "user_turn")


def test_a_turn_without_words_leaves_the_one_before(
    tokenizer: Any, template: str, finder: QueryFinder
) -> None:
    turns = [user("What is red?", "video"), said("A ball."), user("", "video")]
    assert finder.find(rendered(tokenizer, template, turns)) == ("What is red?", "user_turn")


CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    user("What is on the picture?", "image"),
    said("A boat."),
    user("A film:"),
    user("What is red?", "video"),
    said("A ball."),
    user("And where does it roll to?"),
]


@pytest.mark.parametrize("turns", [5, 6, 7])
def test_a_conversation_has_the_question_of_its_first_video(
    tokenizer: Any, template: str, finder: QueryFinder, turns: int
) -> None:
    """Later turns change nothing, so that the video's key in caches stays."""
    ids = rendered(tokenizer, template, CHAT[:turns])
    assert finder.find(ids, "conversation") == ("A film:\nWhat is red?", "user_turn")


def test_a_conversation_that_begins_with_a_film_alone(
    tokenizer: Any, template: str, finder: QueryFinder
) -> None:
    turns = [user("Hello."), said("Hello."), user("", "video"), said("A film."), *CHAT[-1:]]
    ids = rendered(tokenizer, template, turns)
    assert finder.find(ids, "conversation") == ("And where does it roll to?", "user_turn")
    ids = rendered(tokenizer, template, turns[:3])
    assert finder.find(ids, "conversation") == ("Hello.", "user_turn")


def test_what_ends_a_message(tokenizer: Any, finder: QueryFinder) -> None:
    assert tokenizer.convert_ids_to_tokens(list(finder.end_ids)) == ["<|im_end|>"]


@example("  ")
@given(st.text(st.characters(codec="ascii", exclude_characters="<|>"), min_size=1, max_size=60))
def test_any_text(tokenizer: Any, template: str, finder: QueryFinder, text: str) -> None:
    ids = rendered(tokenizer, template, [user(text, "video")])
    assert finder.find(ids) == (text.strip(), "user_turn" if text.strip() else "none")


def test_a_prompt_without_a_template(tokenizer: Any, finder: QueryFinder) -> None:
    ids = tokenizer("look here <video> what is red?", add_special_tokens=False)["input_ids"]
    assert finder.find(ids) == ("what is red?", "prompt_text")


def test_video_last(tokenizer: Any, finder: QueryFinder) -> None:
    ids = tokenizer("what is red? <video>", add_special_tokens=False)["input_ids"]
    assert finder.find(ids) == ("what is red?", "prompt_text")


def test_no_question(tokenizer: Any, template: str, finder: QueryFinder) -> None:
    assert finder.find(media(tokenizer)[1:]) == ("", "none")


def test_a_template_that_takes_plain_text(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}[{{ m['role'] | upper }}] {{ m['content'].strip() }} [END]"
        "{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
    )
    finder = QueryFinder(tokenizer, template, media(tokenizer), media(tokenizer)[1])
    ids = tokenizer("[USER] <video> who came first? [END][ASSISTANT]")["input_ids"]
    assert finder.find(ids) == ("who came first?", "user_turn")


def test_a_template_that_refuses_everything(tokenizer: Any) -> None:
    finder = QueryFinder(
        tokenizer, "{{ raise_exception('no') }}", media(tokenizer), media(tokenizer)[1]
    )
    ids = tokenizer("<video> who came first?")["input_ids"]
    assert finder.find(ids) == ("who came first?", "prompt_text")
