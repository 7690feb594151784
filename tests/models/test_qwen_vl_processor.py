"""METok in the processors of Qwen2.5-VL and Qwen3-VL: layouts, plans, keys and caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.multimodal.processing.context import TimingContext

from metok_vllm.models.query import PROMPT_TEXT, USER_TURN
from metok_vllm.plan.layout import AREA
from tests.engine.prompts import sampled_video
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, make_prompt
from tests.models.qwen_processors import Processor, make
from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL, QWEN3_VL

pytestmark = pytest.mark.slow

START, END, VIDEO = (ID_OF[f"<|{name}|>"] for name in ("vision_start", "vision_end", "video_pad"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen")


@pytest.fixture(scope="module")
def qwen3(folder: Path) -> Processor:
    return make(folder / QWEN3_VL, QWEN3_VL)


@pytest.fixture(scope="module")
def qwen25(folder: Path) -> Processor:
    return make(folder / QWEN2_5_VL, QWEN2_5_VL)


@pytest.mark.parametrize(
    ("size", "grid"), [((96, 160), (3, 5)), ((64, 224), (2, 7)), ((70, 130), (2, 4))]
)
def test_a_layout_has_the_grid_of_the_resized_video(
    qwen3: Processor, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    video = qwen3.layout(4, Clip(3, (2, 3), size, odd=True), 5)
    assert (video.frames, video.grid) == (5, grid)
    assert (video.unit, video.pooling, video.sampled_frames) == (2, AREA, 2)


def test_positions_of_a_dense_video(qwen3: Processor, qwen25: Processor) -> None:
    """Those of a frame's larger side and of text; Qwen2.5-VL's go on by time."""
    clip = Clip(3, (2, 3), (64, 224), fps=4.0)
    video = qwen3.layout(4, clip, 5)
    assert video.positions == 5 * 7 + video.separators
    assert qwen25.layout(4, clip, 5).positions == 8  # 5 x 0.5 s is less than a row is wide
    slow = Clip(3, (2, 3), (64, 224), fps=0.1)
    assert qwen25.layout(4, slow, 5).positions == 4 * 40 + 1


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN3_VL])
@pytest.mark.parametrize("parts", [(4, Clip(3, (2, 3)), 5), (Clip(3, (1,), (64, 64), fps=0.3),)])
def test_a_dense_prompt_is_vllm_s_own(
    request: pytest.FixtureRequest, family: str, parts: Parts
) -> None:
    """The layout and its separators say how vLLM writes the video."""
    made: Processor = request.getfixturevalue({QWEN2_5_VL: "qwen25", QWEN3_VL: "qwen3"}[family])
    video = made.layout(*parts)
    prompt = make_prompt(parts, OFF, media=QWEN)
    dense = made.apply(prompt)
    ids = prompt["prompt_token_ids"]
    at = ids.index(VIDEO)
    assert dense["prompt_token_ids"] == [*ids[:at], *video.dense_ids(VIDEO), *ids[at + 1 :]]
    assert dense["metok"].dense_tokens == video.dense_tokens()
    assert dense["metok"].name == "off"


def test_separators_are_times_and_marks(qwen3: Processor) -> None:
    video = qwen3.layout(4, Clip(3, (2, 1), fps=4.0), 5)
    assert video.after == ((END,),) * 3
    decode = qwen3.processor.info.get_tokenizer().decode
    stamps = [decode(before[:-1]).replace(" ", "") for before in video.before]
    assert stamps == ["<0.1seconds>", "<0.6seconds>", "<1.1seconds>"]
    assert {before[-1] for before in video.before} == {START}


def test_a_video_without_text_between_its_frames(qwen25: Processor) -> None:
    video = qwen25.layout(4, Clip(3, (2, 1)), 5)
    assert (video.separators, video.before, video.after) == (0, (), ())


def film(metadata: dict[str, Any], lengths: tuple[int, ...] = (3, 4)) -> Any:
    """Seven sampled frames, four temporal patches."""
    frames, known = sampled_video(3, lengths, (64, 64), 2.0)
    return frames, {**known, **metadata}


def with_films(films: list[Any], **kwargs: Any) -> Any:
    ids = [token for _ in films for token in (400, START, VIDEO, END)]
    return {
        "prompt_token_ids": [*ids, 500],
        "multi_modal_data": {"video": films},
        "mm_processor_kwargs": {"metok": {}, **kwargs},
    }


@pytest.mark.parametrize("family", ["qwen25", "qwen3"])
def test_what_our_loader_adds_to_the_metadata(request: pytest.FixtureRequest, family: str) -> None:
    """Transformers does not know these fields. A temporal patch has the mean of its times."""
    made: Processor = request.getfixturevalue(family)
    times = [0.1, 0.3, 1.0, 1.5, 4.0, 4.5, 9.0]
    result = made.apply(with_films([film({"timestamps_s": times, "tenant": "a"})]))
    (video,) = result["metok"].videos
    assert video.timestamps_s == pytest.approx((0.2, 1.25, 4.25, 9.0))
    other = made.apply(with_films([film({"timestamps_s": times, "tenant": "b"})]))
    assert other["mm_hashes"] != result["mm_hashes"]


@pytest.mark.parametrize("family", ["qwen25", "qwen3"])
def test_times_of_frames_that_the_processor_samples(
    request: pytest.FixtureRequest, family: str
) -> None:
    """It takes fewer frames than it was given, spread over the whole video."""
    made: Processor = request.getfixturevalue(family)
    frames, metadata = sampled_video(3, (16, 16), (64, 64), 2.0)
    metadata |= {"fps": 4.0, "total_num_frames": 32, "frames_indices": list(range(32))}
    result = made.apply(with_films([(frames, metadata)], fps=2.0, do_sample_frames=True))
    (video,) = result["metok"].videos
    assert video.num_frames == 8
    assert video.timestamps_s[0] <= 0.5
    assert video.timestamps_s[-1] >= 7.0
    assert np.ptp(np.diff(video.timestamps_s)) <= 0.25


def test_rates_of_each_video(qwen3: Processor) -> None:
    """They are in the keys, and go with their videos when others are found in the cache."""
    red, blue = (sampled_video(seed, (16, 16), (64, 64), 2.0)[0] for seed in (3, 4))
    metadata = sampled_video(3, (32,), (64, 64), 2.0)[1]
    metadata |= {"fps": 4.0, "total_num_frames": 32, "frames_indices": list(range(32))}
    keys: dict[tuple[Any, ...], str] = {}
    for clips, rates in (
        ([red, red], [2.0, 1.0]),
        ([red, blue], [2.0, 1.0]),  # the first is found
        ([blue, blue], [2.0, 1.0]),  # the second is found
        ([red, red], [2.0, 2.0]),
    ):
        films = [(clip, metadata) for clip in clips]
        result = qwen3.apply(with_films(films, fps=rates, do_sample_frames=True))
        found = [video.num_frames for video in result["metok"].videos]
        assert found == [{1.0: 4, 2.0: 8}[rate] for rate in rates]
        for (place, clip), key in zip(enumerate(clips), result["mm_hashes"]["video"], strict=True):
            named = (tuple(rates), rates[place], clip is red)
            assert keys.setdefault(named, key) == key
    assert len(set(keys.values())) == len(keys)


CLIP, OTHER, UNSEEN = Clip(3, (2, 3)), Clip(4, (6,), (64, 96)), Clip(8, (2, 3))


def test_a_video_in_vllm_s_cache_is_planned_alike(qwen3: Processor) -> None:
    """Its pixels are not processed again, and its layout is still known."""
    first = qwen3.ask(4, CLIP, 5)
    dense = qwen3.ask(4, CLIP, 5, enabled=False)
    again, dense_again = qwen3.ask(4, CLIP, 5), qwen3.ask(4, CLIP, 5, enabled=False)
    assert again["metok"] == first["metok"]
    assert dense_again["metok"] == dense["metok"]
    assert again["prompt_token_ids"] == first["prompt_token_ids"]
    assert first["mm_hashes"] != dense["mm_hashes"]
    both = qwen3.ask(4, OTHER, 6, CLIP, 5)
    assert both["mm_hashes"]["video"][1] == first["mm_hashes"]["video"][0]
    assert [video.num_frames for video in both["metok"].videos] == [6, 5]
    assert both["metok"].videos[1].encoded_tokens == first["metok"].encoded_tokens


def test_a_video_in_the_cache_without_its_layout_has_no_plan(qwen3: Processor) -> None:
    """As for one that was only named by its id: the request runs, its report lacks the plan."""
    first = qwen3.ask(4, UNSEEN, 5)
    qwen3.processor.layouts.entries.clear()
    again = qwen3.ask(4, UNSEEN, 5)
    assert "metok" not in again
    assert again["prompt_token_ids"] == first["prompt_token_ids"]


def test_one_id_for_two_videos(qwen3: Processor) -> None:
    """A client's id is trusted, as in vLLM; a plan is that of the video that the cache holds."""
    first = make_prompt((4, CLIP, 5), {}, media=QWEN)
    other = make_prompt((4, OTHER, 5), {"stages": [1]}, media=QWEN)
    before = qwen3.apply(first, uuid="clip")
    assert qwen3.apply(other, uuid="clip")["metok"].videos[0].num_frames == 6
    again = qwen3.apply(first, uuid="clip")
    assert again["metok"] == before["metok"]
    assert again["prompt_token_ids"] == before["prompt_token_ids"]


def test_a_layout_is_not_known_before_the_video_is_processed(qwen3: Processor) -> None:
    items = qwen3.processor.info.parse_mm_data(
        make_prompt((CLIP,), {}, media=QWEN)["multi_modal_data"]
    )
    assert qwen3.processor.video_layout(items["video"], 0, None) is None


def test_marks_around_media_are_no_part_of_a_question(qwen3: Processor) -> None:
    tokenizer = qwen3.processor.info.get_tokenizer()
    content = [{"type": "video"}, {"type": "text", "text": "What is red?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert {START, END, VIDEO} <= set(ids)
    assert qwen3.processor.query_finder.find(ids) == ("What is red?", USER_TURN)
    words = tokenizer("what is red?", add_special_tokens=False)["input_ids"]
    bare = [START, VIDEO, END, *words]
    assert qwen3.processor.query_finder.find(bare) == ("what is red?", PROMPT_TEXT)


@pytest.mark.parametrize("family", ["qwen25", "qwen3"])
def test_dummies_are_dense(request: pytest.FixtureRequest, family: str) -> None:
    """Memory and the encoder cache are sized by them, and a request may switch METok off."""
    made: Processor = request.getfixturevalue(family)
    inputs = made.processor.get_dummy_inputs(2048, {"video": 1, "image": 1}, {})
    result = made.processor.apply(inputs, TimingContext(enabled=False))
    (place,) = result["mm_placeholders"]["video"]
    assert place.length == result["metok"].dense_tokens
    assert result["metok"].name == "off"


@pytest.mark.parametrize(("family", "least"), [("qwen25", 1), ("qwen3", 2)])
def test_a_video_of_too_few_frames_is_refused_in_few_words(
    request: pytest.FixtureRequest, family: str, least: int
) -> None:
    """Qwen3-VL's processor needs two frames, and names every pixel where it has one."""
    made: Processor = request.getfixturevalue(family)
    frames, metadata = film({})
    for count in range(least):
        short = frames[:count], {**metadata, "frames_indices": list(range(count))}
        with pytest.raises(ValueError, match=r"^video 2 of the 2 .* has (no|1) frame") as e:
            made.apply(with_films([(frames, metadata), short]), cached=False)
        assert len(str(e.value)) < 100
    enough = frames[:least], {**metadata, "frames_indices": list(range(least))}
    assert made.apply(with_films([enough]), cached=False)["metok"].videos[0].num_frames == 1
