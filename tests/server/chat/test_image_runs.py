"""Runs of images: which parts become one video, and what a client and the log are told."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

from metok_vllm.config import METokConfig
from metok_vllm.errors import MediaForbiddenError
from metok_vllm.server.chat import serving as serving_module
from metok_vllm.server.chat.image_runs import fold_runs, longest_run
from metok_vllm.server.chat.messages import checked_messages, count_videos, videos_of_images
from metok_vllm.server.chat.rendered import NotApplied
from metok_vllm.server.media.part_urls import is_frames_url, split_frames
from tests.server.chat.serving_chat import TEXT, VIDEO, request, serving


def image(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{name}"}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def kinds(message: Any) -> list[str]:
    return [part["type"] for part in message["content"]]


A, B, C = image("AAAA"), image("BBBB"), image("CCCC")


def test_a_long_enough_run_is_one_video_in_its_place() -> None:
    (folded,) = fold_runs([user(TEXT, A, B, C, TEXT, A, B)], 3)
    assert kinds(folded) == ["text", "video_url", "text", "image_url", "image_url"]
    url = folded["content"][1]["video_url"]["url"]
    assert is_frames_url(url)
    assert split_frames(url) == [part["image_url"]["url"] for part in (A, B, C)]
    assert folded["content"][3:] == [A, B]


def test_several_runs_and_videos_keep_their_order() -> None:
    folded = fold_runs([user(A, B, VIDEO, B, C), user(C), user(A, A)], 2)
    assert [kinds(message) for message in folded] == [
        ["video_url"] * 3,
        ["image_url"],
        ["video_url"],
    ]
    assert videos_of_images(folded) == (True, False, True, True)
    assert count_videos(folded) == 4


def test_text_between_images_ends_a_run() -> None:
    messages = [user(A, TEXT, B), {"role": "user", "content": "Hello"}]
    assert fold_runs(messages, 2) == messages
    assert longest_run(messages) == 1
    assert longest_run([user(TEXT)]) == 0


def test_parts_in_short_form_and_by_name_count() -> None:
    short: dict[str, Any] = {"image_url": "data:image/png;base64,AAAA"}
    named = {"type": "image_url", "image_url": None, "uuid": "u"}
    (folded,) = fold_runs(checked_messages([user(short, named)], "tenant"), 2)
    first, second = split_frames(folded["content"][0]["video_url"]["url"])
    assert first == short["image_url"]
    assert second.startswith("metok-find:")


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    async def render(_self: Any, _request: Any) -> tuple[list[Any], list[Any]]:
        return [], []

    monkeypatch.setattr(OpenAIServingChat, "render_chat_request", render)


def rendered(chat: Any, *parts: dict[str, Any], **fields: Any) -> Any:
    async def run() -> Any:
        asked = request(messages=[user(*parts)], **fields)
        await chat.render_chat_request(asked)
        return asked, serving_module._RENDERED.get()

    return asyncio.run(run())


@pytest.mark.usefixtures("stock")
class TestHandler:
    def test_a_run_is_passed_on_as_a_video_with_its_question(self) -> None:
        chat = serving(metok=METokConfig(), image_runs_as_video=3)
        asked, _ = rendered(chat, A, B, C, TEXT)
        assert kinds(asked.messages[0]) == ["video_url", "text"]
        assert asked.mm_processor_kwargs["metok"].query == TEXT["text"]

    def test_runs_count_as_videos(self) -> None:
        chat = serving(metok=METokConfig(), image_runs_as_video=2)
        with pytest.raises(MediaForbiddenError, match=r"9 videos.*--metok-media-max-videos"):
            rendered(chat, *[A, B, TEXT] * 9)

    def test_settings_without_a_video_are_answered(self) -> None:
        _, answer = rendered(serving(metok=METokConfig()), A, TEXT, metok={"preset": "max"})
        assert answer == NotApplied("no video in the request")
        assert answer.report(None, None, []) == {"applied": False, "reason": answer.reason}
        _, answer = rendered(serving(metok=METokConfig()), A, B, A, B, metok={})
        assert "--metok-image-runs-as-video" in answer.reason
        assert rendered(serving(metok=METokConfig()), A, TEXT)[1] is None

    def test_the_log_warns_once(self, caplog: pytest.LogCaptureFixture) -> None:
        chat = serving(metok=METokConfig())
        with caplog.at_level(logging.WARNING, "vllm.metok"):
            logging.getLogger("vllm.metok").addHandler(caplog.handler)
            rendered(chat, A, B, C)
            assert caplog.records == []
            for _ in range(2):
                rendered(chat, A, B, C, A)
            rendered(serving(metok=METokConfig(), image_runs_as_video=5), A, B, C, A)
        logging.getLogger("vllm.metok").removeHandler(caplog.handler)
        texts = {record.getMessage() for record in caplog.records}
        assert len(texts) == 1
        assert "4 images in a row" in texts.pop()
