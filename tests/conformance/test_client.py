"""The official openai client sees an ordinary OpenAI server with a `metok` object on top."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from metok_vllm.config import METokConfig
from metok_vllm.demo import CONFIG_FILE
from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import MODEL, SAMPLE_URL, messages, metric, video_part
from tests.layouts import square
from tests.video import clips

pytestmark = pytest.mark.slow

QUESTION = "What is in the black scene?"
SERVED = METokConfig.load(config_file=CONFIG_FILE, environ={})
MAX_TOKENS = square(32, 8).encoded_tokens(SERVED.for_request({"preset": "max"}))
FIELDS = {
    "applied",
    "reason",
    "source",
    "preset",
    "stages",
    "query_source",
    "focus",
    "reused_tokens",
    "evict_after",
    "fallback",
    "events",
    "visual_tokens",
    "kv_blocks",
    "decoder_prefill_flops",
    "pruning_layers",
    "rule",
    "unpruned",
}


def ask(client: OpenAI, content: list[Any], **more: Any) -> Any:
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(model=MODEL, messages=content, **settings)


def picture_part(color: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), color).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def frame_list(count: int) -> dict[str, Any]:
    frames = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(clips.picture(number, 64, 48)).save(buffer, "JPEG")
        frames.append(base64.b64encode(buffer.getvalue()).decode())
    return video_part("data:video/jpeg;base64," + ",".join(frames))


def but_for_the_cache(report: dict[str, Any]) -> dict[str, Any]:
    """A second answer may find the prompt in vLLM's prefix cache."""
    return {k: v for k, v in report.items() if k not in ("reused_tokens", "decoder_prefill_flops")}


@pytest.mark.parametrize("options", [{}, {"preset": "max"}, {"enabled": False}])
def test_the_joined_stream_is_the_plain_answer(client: OpenAI, options: dict[str, Any]) -> None:
    extra = {"metok": options}
    plain = ask(client, messages(QUESTION, video_part()), extra_body=extra)
    chunks = list(
        ask(
            client,
            messages(QUESTION, video_part()),
            extra_body=extra,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert text
    finish = [c.choices[0].finish_reason for c in chunks if c.choices][-1]
    assert finish == plain.choices[0].finish_reason
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens
    assert but_for_the_cache(chunks[-1].metok) == but_for_the_cache(plain.metok)
    assert all("metok" not in (c.model_extra or {}) for c in chunks[:-1])
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert choices[-1].metok == chunks[-1].metok
    assert plain.choices[0].metok == plain.metok
    assert all("metok" not in (choice.model_extra or {}) for choice in choices[:-1])


def test_a_stream_without_usage_has_the_object_too(client: OpenAI) -> None:
    chunks = list(ask(client, messages(QUESTION, video_part()), stream=True))
    assert set(chunks[-1].metok) == FIELDS


HALF = {"num_events": 3, "key_event_ratio": 0.5, "decode_keep": 0.5}


# The demo's own preset makes all of its eight events key events and decodes on what was run on.
@pytest.mark.parametrize(("options", "events", "key"), [({}, 8, 8), (HALF, 3, 2)])
def test_the_object_is_complete_and_usage_exact(
    client: OpenAI, options: dict[str, Any], events: int, key: int
) -> None:
    answer = ask(client, messages(QUESTION, video_part()), extra_body={"metok": options})
    report = answer.metok
    assert set(report) == FIELDS
    assert report["preset"] == "balanced"
    assert report["stages"] == [1, 2, 3]
    assert report["unpruned"] is None
    assert report["query_source"] == "user_turn"
    assert report["fallback"] is None
    assert len(report["events"]) == events
    assert sum(event["key"] for event in report["events"]) == key
    starts = [event["start_s"] for event in report["events"]]
    ends = [event["end_s"] for event in report["events"]]
    assert starts[0] == 0
    assert starts[1:] == ends[:-1]
    assert ends[-1] == pytest.approx(60, abs=0.2)
    assert report["visual_tokens"]["dense"] == 32 * 16 + 1

    # Everything in the prompt that is no visual token is text, the same with METok and without.
    dense = ask(client, messages(QUESTION, video_part()), extra_body={"metok": {"enabled": False}})
    text_tokens = dense.usage.prompt_tokens - 513
    encoded = report["visual_tokens"]["encoded"]
    assert answer.usage.prompt_tokens == text_tokens + encoded
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert dense.metok["visual_tokens"]["encoded"] == 513
    assert dense.metok["stages"] == []
    # The demo model's 12 layers make 12 cache groups; blocks hold 32 tokens.
    blocks, of_dense = report["kv_blocks"], dense.metok["kv_blocks"]
    assert blocks["dense"] == of_dense["prefill"] == 12 * -(-dense.usage.prompt_tokens // 32)
    assert blocks["decode"] <= blocks["prefill"] < blocks["dense"]
    ran = report["visual_tokens"]["stages"]
    assert encoded == ran[0] > ran[1] > ran[2] > ran[3] == 0
    kept = [-(-n // 2) for n in ran[1:3]] if options is HALF else ran[1:3]
    assert report["visual_tokens"]["decode"] == [encoded, *kept, 0]
    assert (blocks["decode"] < blocks["prefill"]) == (options is HALF)
    flops = report["decoder_prefill_flops"]
    assert flops["dense"] == dense.metok["decoder_prefill_flops"]["metok"]
    assert flops["metok"] < flops["dense"]


def test_without_a_question_the_response_says_so(client: OpenAI) -> None:
    report = ask(client, [{"role": "user", "content": [video_part()]}]).metok
    assert (report["query_source"], report["fallback"]) == ("none", "no_query")
    off = {"metok": {"enabled": False}}
    report = ask(client, [{"role": "user", "content": [video_part()]}], extra_body=off).metok
    assert report["fallback"] is None


def test_a_second_turn_is_a_new_question(client: OpenAI) -> None:
    first = ask(client, messages(QUESTION, video_part()))
    turns = [
        *messages(QUESTION, video_part()),
        {"role": "assistant", "content": first.choices[0].message.content},
        *messages("What swims in the end?"),
    ]
    second = ask(client, turns)
    assert second.metok["query_source"] == "user_turn"
    alone = ask(client, messages("What swims in the end?", video_part()))
    relevance = [event["relevance"] for event in second.metok["events"]]
    assert relevance == [event["relevance"] for event in alone.metok["events"]]
    assert relevance != [event["relevance"] for event in first.metok["events"]]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_next_turn_of_a_conversation_is_read_from_the_prefix_cache(
    client: OpenAI, server: ChildServer, streamed: bool
) -> None:
    """Vision tokens that the first question selected alone; usage, report and metrics agree."""
    names = ("metok_prefix_hits_total", "metok_prefix_tokens_total")
    metok = {"stages": [1], "focus": "conversation", "num_events": 3 + streamed}
    turns = messages(QUESTION, video_part())
    first = ask(client, turns, extra_body={"metok": metok})
    assert first.metok["focus"] == "conversation"
    # The demo's template begins each prompt alike.
    assert first.metok["reused_tokens"] < 64
    before = [metric(server, name) for name in names]
    turns += [{"role": "assistant", "content": first.choices[0].message.content}]
    turns += messages("What swims in the end?")
    if streamed:
        stream = ask(
            client,
            turns,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"metok": metok},
        )
        *_, second = stream
    else:
        second = ask(client, turns, extra_body={"metok": metok})
    reused = second.metok["reused_tokens"]
    assert reused >= second.metok["visual_tokens"]["encoded"] // 32 * 32
    assert second.usage.prompt_tokens_details.cached_tokens == reused
    assert [metric(server, name) for name in names] == [before[0] + 1, before[1] + reused]
    flops = second.metok["decoder_prefill_flops"]
    assert flops["ran"] < 0.3 * flops["metok"]
    events = [answer.metok["events"] for answer in (first, second)]
    assert events[0] == events[1]


def test_several_videos_and_a_picture(client: OpenAI) -> None:
    parts = [video_part(), picture_part("red"), frame_list(9)]
    report = ask(client, messages("Which is longer?", *parts)).metok
    assert {event["video"] for event in report["events"]} == {0, 1}
    assert report["visual_tokens"]["dense"] == 513 + 9 * 16 + 1


def test_text_and_pictures_have_no_object(client: OpenAI) -> None:
    for content in (messages("Hello"), messages("What is it?", picture_part("blue"))):
        answer = ask(client, content)
        assert answer.choices[0].message.content
        assert "metok" not in (answer.model_extra or {})


def test_two_choices(client: OpenAI) -> None:
    answer = ask(client, messages(QUESTION, video_part()), n=2, temperature=0.9, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert set(answer.metok) == FIELDS


def test_eight_at_once_answer_as_alone(client: OpenAI) -> None:
    kinds: list[tuple[list[Any], dict[str, Any]]] = [
        (messages(QUESTION, video_part()), {}),
        (messages("What swims?", video_part()), {}),
        (messages(QUESTION, video_part()), {"enabled": False}),
        (messages(QUESTION, video_part()), {"preset": "quality"}),
        (messages("Hello there"), {}),
        (messages("What is it?", picture_part("green")), {}),
        (messages("How many?", frame_list(6)), {}),
        (messages("How many?", frame_list(11)), {"enabled": False}),
    ]

    def one(kind: tuple[list[Any], dict[str, Any]]) -> str:
        answer = ask(client, kind[0], extra_body={"metok": kind[1]})
        return str(answer.choices[0].message.content)

    alone = [one(kind) for kind in kinds]
    with ThreadPoolExecutor(len(kinds)) as pool:
        assert list(pool.map(one, kinds)) == alone


def test_models_version_and_health(client: OpenAI, server: ChildServer) -> None:
    assert client.models.list().data[0].id == MODEL
    for path in ("/health", "/health/ready", "/version"):
        assert httpx.get(server.url + path).status_code == 200
    page = httpx.get(server.url + "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<video" in page.text


def test_metrics_count(client: OpenAI, server: ChildServer) -> None:
    def read() -> list[float]:
        return [
            metric(server, "metok_requests_total", preset="max"),
            metric(server, "metok_visual_tokens_total", point="dense"),
            metric(server, "metok_visual_tokens_total", point="encoded"),
            metric(server, "metok_video_decode_seconds_count")
            + metric(server, "metok_frame_cache_hits_total"),
        ]

    before = read()
    ask(client, messages(QUESTION, video_part(SAMPLE_URL)), extra_body={"metok": {"preset": "max"}})
    assert [b - a for a, b in zip(before, read(), strict=True)] == [1, 513, MAX_TOKENS, 1]
    assert metric(server, "vllm:request_success_total") > 0


def test_the_next_question_about_a_video_decodes_nothing(
    client: OpenAI, server: ChildServer
) -> None:
    names = ("metok_video_decode_seconds_count", "metok_frame_cache_hits_total")
    ask(client, messages("What is last here?", video_part()))
    before = [metric(server, name) for name in names]
    ask(client, messages("What is first here?", video_part()))
    assert [metric(server, name) for name in names] == [before[0], before[1] + 1]


def test_stage_seconds_count_what_was_encoded_not_what_was_cached(
    client: OpenAI, server: ChildServer
) -> None:
    counts = []
    for _ in range(2):
        ask(client, messages("A question for the first time?", video_part()))
        counts.append(metric(server, "metok_stage_seconds_count", stage="1"))
    assert counts[1] == counts[0] > 0
    assert metric(server, "metok_stage_seconds_sum", stage="1") > 0
