"""Several videos in a prompt, videos beside images: a batch answers as each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.engine.engines import model_of, render, reset_caches
from tests.engine.prompts import answer, chat_prompt, logprobs, scenes, token_ids, video

pytestmark = pytest.mark.slow


def prompts() -> list[dict[str, Any]]:
    picture = Image.fromarray(scenes(3, (1,), (90, 120))[0])
    clips = [video(21, (5, 9, 4)), video(22, (3, 2)), video(23, (1,))]
    return [
        chat_prompt("Which one is longest?", videos=clips),
        chat_prompt("Do they match?", videos=clips[:1], images=[picture]),
        chat_prompt("Do they match?", videos=clips[:2], images=[picture, picture]),
        chat_prompt("What comes last?", videos=clips[:1], options={"preset": "max"}),
        chat_prompt("What comes last?", videos=clips[1:2], options={"enabled": False}),
        chat_prompt("What is it?", images=[picture]),
        chat_prompt("Say something."),
        chat_prompt("Where?", videos=clips[:1], options={"key_frames_per_event": 1024}),
        chat_prompt(
            "Where?", videos=clips[:1], options={"strides": [64, 64, 64], "num_events": 1024}
        ),
    ]


def test_a_mixed_batch_answers_as_each_alone(metok: Any) -> None:
    alone = []
    for prompt in prompts():
        reset_caches(metok)
        alone.append(answer(metok, [prompt])[0])
    reset_caches(metok)
    for got, expected in zip(answer(metok, prompts()), alone, strict=True):
        assert got.prompt_token_ids == expected.prompt_token_ids
        assert token_ids(got) == token_ids(expected)
        assert logprobs(got) == pytest.approx(logprobs(expected), abs=1e-3)


def test_each_video_of_a_prompt_is_selected_by_itself(metok: Any) -> None:
    """A video's events do not depend on the other videos of its prompt."""
    stage1 = model_of(metok).stage1
    clips = [video(21, (5, 9, 4)), video(22, (3, 2, 6))]
    reports = []
    for chosen in (clips, clips[:1], clips[1:]):
        reset_caches(metok)
        prompt = chat_prompt("What sails on the sea?", videos=chosen)
        answer(metok, [prompt], tokens=1)
        plan = render(metok, prompt)["metok"]
        decided = [stage1.events.report(v.key) for v in plan.videos]
        reports.append([{k: v for k, v in d.items() if not k.endswith("seconds")} for d in decided])
    both, first, second = reports
    assert both == [*first, *second]


@pytest.mark.parametrize("options", [None, {"enabled": False}])
@pytest.mark.parametrize("place", [0, 1])
def test_a_video_without_frames_is_refused_by_its_number(
    metok: Any, options: dict[str, Any] | None, place: int
) -> None:
    clip = video(21, (5, 9, 4))
    clips = [clip, clip]
    clips[place] = (clip[0][:0], clip[1])
    with pytest.raises(ValueError, match=f"video {place + 1} of the 2 in the request has no frame"):
        answer(metok, [chat_prompt("What is it?", videos=clips, options=options)])
    (again,) = answer(metok, [chat_prompt("What is it?", videos=[clip], options=options)])
    assert token_ids(again)
