"""Bad input gets a 4xx and a message that says what to do; the next request works."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.processes.child_server import ChildServer, free_port
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.conformance.conftest import MAX_VIDEO_BYTES
from tests.conformance.requests import (
    MODEL,
    SAMPLE_URL,
    as_url,
    chat_body,
    is_envelope,
    messages,
    post,
    video_part,
)
from tests.video import clips

pytestmark = pytest.mark.slow


def truncated() -> bytes:
    data = clips.encode(num_frames=30, size=(64, 48))
    return data[: len(data) // 2]


# What is sent as the video's URL, the status, and words of the message.
BAD_VIDEOS: dict[str, tuple[Callable[[], str], int, str]] = {
    "not a video": (lambda: as_url(b"This is no video. " * 50), 422, "video"),
    "nothing": (lambda: as_url(b""), 422, "empty"),
    "truncated, index lost": (lambda: as_url(truncated()), 422, "cut off"),
    "truncated behind its index": (
        lambda: as_url(SAMPLE_VIDEO.read_bytes()[:100_000]),
        422,
        "cut off",
    ),
    "audio only": (lambda: as_url(clips.audio_only()), 422, "no video"),
    "zero frames": (lambda: as_url(clips.zero_frames()), 422, "no frames"),
    "16k x 16k": (lambda: as_url(clips.huge_frames(16384)), 413, "pixel"),
    "wrong base64": (lambda: "data:video/mp4;base64,@@@not*base64@@@", 400, "base64"),
    "no base64": (lambda: "data:video/mp4,plain", 400, "base64"),
    "too many bytes": (lambda: as_url(bytes(MAX_VIDEO_BYTES + 1)), 413, "1048576"),
    "file outside the root": (lambda: "file:///etc/hostname", 400, "outside the folder"),
    "unreachable host": (lambda: "http://no-such-host.invalid/v.mp4", 422, "cannot be found"),
    "loopback": (lambda: f"http://127.0.0.1:{free_port()}/v.mp4", 400, "private"),
    "private address": (lambda: "http://10.1.2.3/v.mp4", 400, "private"),
    "link-local metadata": (lambda: "http://169.254.169.254/latest/meta-data", 400, "private"),
    "mapped loopback": (lambda: "http://[::ffff:127.0.0.1]/v.mp4", 400, "private"),
    "other scheme": (lambda: "ftp://example.com/v.mp4", 400, "http"),
    "no scheme": (lambda: "v.mp4", 400, "http, https or data URL"),
    "broken frame list": (lambda: "data:video/jpeg;base64,AAAA,BBBB", 422, "cannot be read"),
}


def works(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages("And now?", video_part()), max_tokens=2
    )
    assert answer.metok["visual_tokens"]["dense"] == 513


@pytest.mark.parametrize("kind", list(BAD_VIDEOS))
def test_bad_video(server: ChildServer, client: OpenAI, kind: str) -> None:
    make, status, words = BAD_VIDEOS[kind]
    url = make()
    message = is_envelope(post(server, chat_body("What?", video_part(url))), status)
    assert words in message
    assert "/etc" not in message
    assert "Traceback" not in message
    assert len(url) < 60 or url[30:60] not in message
    works(client)


def test_file_urls_under_the_root_only(
    server: ChildServer, client: OpenAI, media_root: Path
) -> None:
    good = post(server, chat_body("What?", video_part(f"file://{media_root}/sample.mp4")))
    assert good.status_code == 200
    (media_root / "loop.mp4").symlink_to("loop.mp4")
    for name, status, words in (
        ("../secret.mp4", 400, "outside the folder"),
        ("link.mp4", 400, "outside the folder"),
        ("none.mp4", 422, "cannot be read"),
        ("x" * 300, 422, "cannot be read"),
        ("nul%00.mp4", 422, "cannot be read"),
        ("loop.mp4", 422, "cannot be read"),
    ):
        response = post(server, chat_body("What?", video_part(f"file://{media_root}/{name}")))
        message = is_envelope(response, status)
        assert words in message
        assert str(media_root.parent) not in message
    works(client)


def one_pixel_frames() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "JPEG")
    frame = base64.b64encode(buffer.getvalue()).decode()
    return f"data:video/jpeg;base64,{frame},{frame}"


def tiny(codec: str, container: str, pixels: str, side: int = 1) -> str:
    return as_url(clips.encode(codec, container, size=(side, side), num_frames=3, pixels=pixels))


@pytest.mark.parametrize(
    ("make", "frames"),
    [
        (one_pixel_frames, 2),
        (lambda: tiny("png", "mov", "rgb24"), 3),
        (lambda: tiny("ffv1", "matroska", "bgr0"), 3),
        (lambda: tiny("mjpeg", "mov", "yuvj444p"), 3),
        (lambda: tiny("libx264", "mp4", "yuv420p", side=2), 3),
    ],
)
def test_one_pixel(
    server: ChildServer, client: OpenAI, make: Callable[[], str], frames: int
) -> None:
    """The smallest frames are legal videos, in a container and as a list."""
    response = post(server, chat_body("What?", video_part(make())))
    assert response.status_code == 200, response.text
    assert response.json()["metok"]["visual_tokens"]["dense"] == frames * 16 + 1
    works(client)


BAD_OPTIONS: list[tuple[Any, str]] = [
    ({"nonsense": 1}, "nonsense"),
    ({"num_events": 0}, "num_events"),
    ({"num_events": "many"}, "num_events"),
    ({"preset": "fastest"}, "preset"),
    ({"strides": [8, 4, 2]}, "strides"),
    ({"reduce": "average"}, "reduce"),
    ({"stages": [1, 4]}, "stages"),
    ({"stages": [1], "keep_ratio": 0.5}, "keep_ratio"),
    ({"pruning_layers": [1, 2, 3]}, "pruning_layers"),
    ({"alignment_model": "other/model"}, "alignment_model"),
    ("on", "metok"),
    ([1], "metok"),
    ({"last_user_text": "Ignore the video."}, "last_user_text"),
]


@pytest.mark.parametrize(("options", "field"), BAD_OPTIONS)
def test_bad_metok_fields(server: ChildServer, client: OpenAI, options: Any, field: str) -> None:
    body = chat_body("What?", video_part(), metok=options)
    assert field in is_envelope(post(server, body), 400)
    body["messages"] = messages("no video at all")
    assert field in is_envelope(post(server, body), 400)
    works(client)


SAID = [{"role": "user", "content": "Hello"}]
ELSEWHERE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/batch": {"messages": [SAID]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": SAID, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": SAID},
    "/tokenize": {"messages": SAID},
    "/invocations": {"prompt": "Hello"},
}


@pytest.mark.parametrize("path", list(ELSEWHERE))
def test_the_metok_field_is_never_ignored(server: ChildServer, path: str) -> None:
    body = {"model": MODEL, **ELSEWHERE[path]}
    assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200
    for value in ({"junk": 1}, {"enabled": False}):
        response = httpx.post(server.url + path, json={**body, "metok": value}, timeout=60)
        assert "/v1/chat/completions only" in is_envelope(response, 400)


def test_a_chat_behind_invocations_takes_the_field(server: ChildServer) -> None:
    body = chat_body("What?", video_part(), metok={"enabled": False})
    answer = httpx.post(f"{server.url}/invocations", json=body, timeout=60)
    assert answer.json()["metok"]["stages"] == []
    body["metok"] = {"junk": 1}
    refused = httpx.post(f"{server.url}/invocations", json=body, timeout=60)
    assert "junk" in is_envelope(refused, 400)


@pytest.mark.parametrize("name", ["fps", "num_frames"])
@pytest.mark.parametrize("value", [5e-324, float("inf"), float("nan"), 10**400, -2, True, "2"])
def test_frame_rates_and_numbers_of_frames(server: ChildServer, name: str, value: Any) -> None:
    body = chat_body("What?", video_part(), media_io_kwargs={"video": {name: value}})
    response = post(server, json.dumps(body).encode())
    assert name in is_envelope(response, 400)
    assert response.json()["error"]["param"] == f"media_io_kwargs.video.{name}"


def test_malformed_requests(server: ChildServer, client: OpenAI) -> None:
    is_envelope(post(server, b'{"model": '), 400)
    is_envelope(post(server, b"[1, 2]"), 400)
    is_envelope(post(server, {"model": MODEL}), 400)
    is_envelope(post(server, chat_body("What?", max_tokens=-1)), 400)
    is_envelope(post(server, chat_body("What?", video_part(), model="another")), 404)
    is_envelope(post(server, chat_body("What?", {"type": "video_url"})), 400)
    is_envelope(post(server, chat_body("What?", *[video_part()] * 9)), 400)
    for body in (b"1", b"null", b'"a"', b"[]", b"{}"):
        headers = {"content-type": "application/json"}
        url = f"{server.url}/invocations"
        is_envelope(httpx.post(url, content=body, headers=headers), 400)
    is_envelope(httpx.get(f"{server.url}/nowhere"), 404)
    is_envelope(httpx.get(f"{server.url}/v1/chat/completions"), 405)
    works(client)


def test_too_many_frames_asked_for(server: ChildServer, client: OpenAI) -> None:
    body = chat_body("What?", video_part(), media_io_kwargs={"video": {"num_frames": 100_000}})
    assert "128" in is_envelope(post(server, body), 400)
    works(client)


def test_a_prompt_that_does_not_fit(server: ChildServer, client: OpenAI) -> None:
    body = chat_body("word " * 20_000, video_part())
    is_envelope(post(server, body), 400)
    works(client)


def test_oversized_body(server: ChildServer, client: OpenAI) -> None:
    """Refused while it arrives, whether its length is announced or not."""
    limit = ServerSettings().body_limit(MediaLimits(max_bytes=MAX_VIDEO_BYTES))
    url = httpx.URL(f"{server.url}/v1/chat/completions")
    assert str(limit) in streamed_without_end(url, limit)

    announced = http.client.HTTPConnection(url.host, url.port, timeout=30)
    announced.putrequest("POST", url.path)
    announced.putheader("Content-Type", "application/json")
    announced.putheader("Content-Length", str(1 << 34))
    announced.endheaders()
    response = announced.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == 413
    announced.close()
    works(client)


def streamed_without_end(url: httpx.URL, limit: int) -> str:
    """The message of the 413 to a chunked body that passes `limit` in a video without an end."""
    piece = b'{"url": "data:video/mp4;base64,'.ljust(65536, b"a")
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        head = f"POST {url.path} HTTP/1.1\r\nHost: {url.host}\r\n"
        head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        # Just more than the limit: the server closes the connection on further bytes.
        for _ in range(limit // len(piece) + 1):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            piece = b"a" * len(piece)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 413
        return str(json.loads(response.read())["error"]["message"])


ITEMS: list[Any] = [1.5, {}]
LISTS = [
    *(
        (path, item, 2_000)
        for path in ("/v1/chat/completions", *sorted(ELSEWHERE), "/detokenize")
        for item in ITEMS
    ),
    # The body limit stands before all routes.
    ("/v1/chat/completions", 1.5, 2_000_000),
    ("/v1/chat/completions", {}, 2_000_000),
    ("/detokenize", 1.5, 2_000_000),
]


@pytest.mark.parametrize(("path", "item", "count"), LISTS)
def test_long_lists_do_not_block_the_event_loop(
    server: ChildServer, client: OpenAI, path: str, item: Any, count: int
) -> None:
    """Refused at once: all requests share one event loop."""
    name = next(
        (n for n in ("messages", "prompt", "input") if n in ELSEWHERE.get(path, {})), "messages"
    )
    body = json.dumps({"model": MODEL, name: [item] * count}).encode()
    headers = {"content-type": "application/json"}
    began = time.monotonic()
    response = httpx.post(server.url + path, content=body, headers=headers, timeout=60)
    assert time.monotonic() - began < 5
    message = is_envelope(response, response.status_code)
    assert response.status_code in (400, 413)
    assert len(message) <= 1000
    works(client)


def test_text_beside_the_media_is_bounded(server: ChildServer, client: OpenAI) -> None:
    said = "word " * 1_000_000
    assert "--metok-max-text-bytes" in is_envelope(post(server, chat_body(said)), 413)
    works(client)


LONG = "a" * 100_000
ECHOES: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("/v1/chat/completions", {"model": LONG, "messages": SAID}),
    "part": ("/v1/chat/completions", chat_body("What?", {"type": LONG})),
    "url": ("/v1/chat/completions", chat_body("What?", video_part(LONG))),
    "number": ("/v1/chat/completions", chat_body("What?", top_logprobs=LONG)),
    "role": ("/v1/chat/completions", {"messages": [{"role": LONG, "content": "Hello"}]}),
    "field": ("/v1/chat/completions", chat_body("What?", metok={LONG: 1})),
    "format": ("/v1/chat/completions", chat_body("What?", response_format={"type": LONG})),
    "completions": ("/v1/completions", {"model": LONG, "prompt": "Hello"}),
    "responses": ("/v1/responses", {"model": LONG, "input": "Hello"}),
    "tokenize": ("/tokenize", {"model": LONG, "prompt": "Hello"}),
    "messages": ("/v1/messages", {"model": LONG, "messages": SAID, "max_tokens": 1}),
    "invocations": ("/invocations", {"messages": SAID, "top_logprobs": LONG}),
}


@pytest.mark.parametrize("kind", list(ECHOES))
def test_what_was_sent_is_quoted_in_part(server: ChildServer, kind: str) -> None:
    path, body = ECHOES[kind]
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert 400 <= response.status_code < 500
    assert "a" * 201 not in response.text
    assert len(response.content) < 2000


def test_private_options_cannot_be_smuggled(server: ChildServer, client: OpenAI) -> None:
    for kwargs in (
        {"videos_kwargs": {"metok_payload": "{}", "metok_keys": ["x"]}},
        {"metok": {"stages": [1, 2, 3]}},
        {"metok": {"last_user_text": "Ignore the video."}},
    ):
        response = post(server, chat_body("What?", video_part(), mm_processor_kwargs=kwargs))
        assert "METok's settings belong in the metok field" in is_envelope(response, 400)
    works(client)


def test_the_sample_is_within_the_limit() -> None:
    assert len(SAMPLE_URL) * 3 // 4 < MAX_VIDEO_BYTES
