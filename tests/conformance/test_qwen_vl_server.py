"""Qwen's video models behind `metok serve`, on a real file of minutes.

A small random checkpoint in each published layout: what is tested is everything between the request
and the answer, not what the answer says. Qwen3-VL is served with vLLM's default flags. Compiling
takes most of its start, so the others run without.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from metok_vllm.demo import ALIGNMENT_DIR
from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.conformance.requests import CHAT, as_url, is_envelope, video_part
from tests.environment import STARTED_WITH
from tests.reference.qwen3_5 import QWEN3_5
from tests.reference.qwen_vl_checkpoint import write_checkpoint
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]

# Of the other families, one answer is asked.
FAMILIES = [QWEN3_VL]
ALL_FAMILIES = [*FAMILIES, QWEN2_5_VL, QWEN3_VL_MOE, QWEN3_5]
SCENES, SCENE_SECONDS, RATE = 12, 20, 6
SECONDS = SCENES * SCENE_SECONDS


def minutes_of_video(width: int, height: int) -> bytes:
    """An H.264 file of SECONDS seconds: one colour a scene, and a square that moves."""
    colours = np.random.default_rng(width).integers(0, 255, (SCENES, 3))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(SECONDS * RATE):
            scene = number // (SCENE_SECONDS * RATE)
            picture = np.full((height, width, 3), colours[scene], np.uint8)
            left = number % (width - 32)
            picture[16:48, left : left + 32] = colours[(scene + 5) % SCENES]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def wide() -> str:
    return as_url(minutes_of_video(320, 180))


@pytest.fixture(scope="module")
def tall() -> str:
    return as_url(minutes_of_video(128, 224))


@pytest.fixture(scope="module", params=FAMILIES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChildServer]:
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    write_checkpoint(folder, request.param)
    flags = ["--metok-alignment-model", str(ALIGNMENT_DIR), "--served-model-name", request.param]
    if request.param != QWEN3_VL:
        flags.append("--enforce-eager")
    # vLLM's default takes nearly all memory of the machine.
    environ = {**STARTED_WITH, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with ChildServer([*SERVE, str(folder), *flags], environ=environ) as server:
        try:
            server.wait_until_ready(480)
            yield server
        except BaseException:
            print(server.log_tail(80))
            raise


def ask(server: ChildServer, *parts: dict[str, Any], **more: Any) -> httpx.Response:
    model = httpx.get(f"{server.url}/v1/models", timeout=30).json()["data"][0]["id"]
    content = [*parts, {"type": "text", "text": "What is in the black scene?"}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
        **more,
    }
    return httpx.post(server.url + CHAT, json=body, timeout=240)


def answer(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def frames(number: int) -> dict[str, Any]:
    return {"media_io_kwargs": {"video": {"num_frames": number}}}


@pytest.mark.parametrize("server", ALL_FAMILIES, indirect=True)
def test_a_file_of_minutes_is_pruned(server: ChildServer, wide: str) -> None:
    found = answer(ask(server, video_part(wide), **frames(128)))
    report = found["metok"]
    assert report["applied"]
    dense, encoded = (report["visual_tokens"][name] for name in ("dense", "encoded"))
    assert encoded < 0.7 * dense
    stages, kv = report["visual_tokens"]["stages"], report["kv_blocks"]
    assert stages[0] == encoded
    if found["model"] == QWEN3_5:
        assert stages == [encoded]  # its linear-attention layers hold a state, not tokens
    else:
        assert report["unpruned"] is None
        assert stages[3] < 0.5 * stages[1]
        assert kv["decode"] < kv["prefill"] < kv["dense"]
    events = report["events"]
    assert len(events) == 5
    assert sum(event["key"] for event in events) == 3
    assert events[-1]["end_s"] == pytest.approx(SECONDS, abs=1)
    for before, after in pairwise(events):
        assert before["end_s"] == after["start_s"]
    # The clip's own scenes: most cuts lie where two of them meet.
    cuts = [event["start_s"] for event in events[1:]]
    step = SECONDS / 64
    assert sum(abs(cut - SCENE_SECONDS * round(cut / SCENE_SECONDS)) <= step for cut in cuts) >= 3


def test_the_same_question_again_is_the_same_answer(server: ChildServer, wide: str) -> None:
    """The second time, pixels, layout and features come from caches."""
    first, second = (answer(ask(server, video_part(wide), **frames(32))) for _ in range(2))
    assert first["choices"][0]["message"] == second["choices"][0]["message"]
    assert first["metok"]["visual_tokens"] == second["metok"]["visual_tokens"]
    assert first["metok"]["events"] == second["metok"]["events"]


def test_a_later_turn_and_media_of_all_shapes(server: ChildServer, wide: str, tall: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 40, 40)).save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    between = answer(ask(server, video_part(wide), image, video_part(tall), **frames(16)))
    assert {event["video"] for event in between["metok"]["events"]} == {0, 1}
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [video_part(tall), {"type": "text", "text": "What is it?"}]},
    ]
    later = answer(ask(server, messages=turns, media_io_kwargs={"video": {"fps": 0.25}}))
    assert later["metok"]["applied"]
    assert later["metok"]["visual_tokens"]["dense"] > 0


@pytest.mark.parametrize(
    "metok",
    [{"enabled": False}, {"stages": [1]}, {"reduce": "select"}, {"reduce": "resize"}]
    + [{"rule": rule, "rule_keep": 0.3} for rule in ("vcast", "evs", "vidcom2", "fastv")],
    ids=str,
)
def test_settings_of_a_request(server: ChildServer, wide: str, metok: dict[str, Any]) -> None:
    found = answer(ask(server, video_part(wide), metok=metok, **frames(24)))
    tokens = found["metok"]["visual_tokens"]
    assert (tokens["encoded"] < tokens["dense"]) is not (
        metok.get("rule") == "fastv" or not metok.get("enabled", True)
    )


def test_what_the_model_cannot_do_is_said(server: ChildServer, wide: str) -> None:
    response = ask(server, video_part(wide), metok={"strides": [2, 3, 8]}, **frames(16))
    assert "multiples of 2" in is_envelope(response, 400)
    assert answer(ask(server, video_part(wide), **frames(16)))["metok"]["applied"]


def test_times_of_patches_are_text_of_the_prompt(server: ChildServer, wide: str) -> None:
    """Qwen3-VL writes the time of each temporal patch; METok keeps all of them."""
    found = answer(ask(server, video_part(wide), metok={"stages": [1]}, **frames(16)))
    fewer = answer(
        ask(server, video_part(wide), metok={"stages": [1], "strides": [8, 8, 8]}, **frames(16))
    )
    # 160 x 320 pixels a patch: five of ten tokens wide, cells of 4 x 4 make two times three.
    assert fewer["metok"]["visual_tokens"]["encoded"] < found["metok"]["visual_tokens"]["encoded"]
    assert fewer["metok"]["visual_tokens"]["encoded"] > 8 * 6
