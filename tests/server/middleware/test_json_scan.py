from __future__ import annotations

import base64
import json
import random
import time
from typing import Any

import pytest

from metok_vllm.server.middleware import json_scan
from metok_vllm.server.middleware.json_scan import LONG_STRING, JsonScan, ScanError

PIECE = 64 << 10


def scan(body: bytes, max_text: int = 4 << 20, piece: int = PIECE) -> JsonScan:
    found = JsonScan(max_text)
    for start in range(0, len(body), piece):
        found.feed(body[start : start + piece])
    return found


def refused(body: bytes, **more: Any) -> ScanError:
    with pytest.raises(ScanError) as caught:
        scan(body, **more)
    return caught.value


def chat(part: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()


VIDEO = base64.b64encode(random.Random(1).randbytes(3 << 20)).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{VIDEO}"}},
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{VIDEO},{VIDEO}"}},
        {"type": "image", "source": {"type": "base64", "data": VIDEO}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{VIDEO}"},
    ],
)
@pytest.mark.parametrize("slash", [b"/", b"\\/"])
def test_media_are_not_text(part: Any, slash: bytes) -> None:
    body = chat(part).replace(b"/", slash)
    assert scan(body).text_bytes < LONG_STRING + 500


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": VIDEO + VIDEO},
        {"type": "text", "text": "word " * (1 << 20)},
        {"type": "video_url", "video_url": {"url": "word " * (1 << 20)}},
        {"type": "text", "note": ["w" * 1000] * 5000},
    ],
)
def test_everything_else_is_text(part: Any) -> None:
    error = refused(chat(part))
    assert error.status == 413
    assert "4194304 bytes of text" in str(error)
    assert scan(chat(part), max_text=0).text_bytes > 4 << 20


@pytest.mark.parametrize("item", [1, "a", None, {}, [], {"role": "user"}, 1.5, True])
def test_long_lists_of_anything_are_refused(item: Any) -> None:
    assert "list items" in str(refused(json.dumps({"messages": [item] * 15_000}).encode()))
    assert "list items" in str(refused(json.dumps([[item] * 90] * 90).encode()))
    scan(json.dumps({"messages": [item] * 2_500}).encode())


@pytest.mark.parametrize("key", ["prompt", "tokens", "prompt_token_ids"])
def test_long_token_id_lists_are_accepted(key: str) -> None:
    many = list(range(150_000))
    scan(json.dumps({key: many}).encode())
    scan(json.dumps({key: [many[:75_000], many[75_000:]]}).encode())
    assert "token ids" in str(refused(json.dumps({key: many + many}).encode()))
    wrong: tuple[Any, ...] = ("a", [], 1.5, -1, None, True)
    for others in (*([item] * 15_000 for item in wrong), [{"messages": [1] * 15_000}]):
        assert "list items" in str(refused(json.dumps({key: others}).encode()))


def test_a_token_key_must_match_exactly() -> None:
    for body in (
        b'{"pr\\u006fmpt": [%s]}',
        b'{"prompt": 1, "messages": [%s]}',
        b'["prompt", [%s]]',
    ):
        refused(body % b",".join([b"1"] * 15_000))


def test_names_and_depth_are_bounded() -> None:
    assert "names and values" in str(
        refused(json.dumps({str(n): n for n in range(150_000)}).encode(), max_text=0)
    )
    deep = refused(b"[" * 200)
    assert (deep.status, "levels deep" in str(deep)) == (400, True)
    assert refused(b'{"a":' * 200).status == 400
    scan(b"[" * 90 + b"]" * 90)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_is_utf_8(encoding: str) -> None:
    for piece in (1, 3, PIECE):
        assert refused('{"a": 1}'.encode(encoding), piece=piece).status == 400


def test_pieces_make_no_difference() -> None:
    chance = random.Random(7)
    for _ in range(300):
        word = "".join(chance.choice('ab\\"/{},:[') for _ in range(chance.randrange(9)))
        body = json.dumps(
            {"url": word, "m": [1] * 3, "x": [word], word: {"prompt": [1, 2]}}
        ).encode()
        whole, parts, start = scan(body), JsonScan(4 << 20), 0
        while start < len(body):
            length = chance.randrange(1, 6)
            parts.feed(body[start : start + length])
            start += length
        assert vars(parts) == vars(whole), body
        assert whole._open == []
        assert not whole._in_string


@pytest.mark.parametrize(
    "body",
    [
        b'""' * 2_000_000,
        b'"\\"' * 1_300_000,
        b'"' + b"\\" * 4_000_000,
        b'"' + b'\\"' * 2_000_000,
        b"," * 4_000_000,
        b'{"prompt":[' + b"1," * 2_000_000,
        b":" * 4_000_000,
    ],
)
def test_the_worst_bodies_take_linear_time(body: bytes) -> None:
    found = JsonScan(4 << 20)
    longest = 0.0
    try:
        for start in range(0, len(body), PIECE):
            begun = time.process_time()
            found.feed(body[start : start + PIECE])
            longest = max(longest, time.process_time() - begun)
    except ScanError:
        pass
    assert longest < 0.5


def test_bodies_at_the_limits_validate_in_time() -> None:
    """An invalid item of a chat request costs up to 15 errors of 4 us."""
    assert json_scan.MAX_LIST_ITEMS * 15 * 4e-6 < 1
