"""`metok chat` against a real HTTP server that speaks server-sent events as vLLM does."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.cli import main

METOK = {
    "preset": "balanced",
    "stages": [1, 2, 3],
    "query_source": "user_turn",
    "events": [
        {"start_s": 0.0, "end_s": 20.0, "relevance": 0.25, "key": True},
        {"start_s": 20.0, "end_s": 60.0, "relevance": -0.01, "key": False},
    ],
    "unpruned": None,
    "pruning_layers": [2, 4, 6],
    "visual_tokens": {
        "dense": 1569,
        "encoded": 312,
        "stages": [312, 200, 100, 0],
        "decode": [312, 0, 0, 0],
    },
    "kv_blocks": {"dense": 200, "prefill": 24, "decode": 14},
    "decoder_prefill_flops": {"dense": 2.5e12, "metok": 5e11},
}


def chunk(text: str | None = None, **rest: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": None if text else "stop"}
    return {"object": "chat.completion.chunk", "choices": [choice], **rest}


class Server(ThreadingHTTPServer):
    """Answers `/v1/models` and streams `chunks`; stores the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        usage = {"prompt_tokens": 340, "completion_tokens": 2, "total_tokens": 342}
        self.chunks: list[dict[str, Any]] = [
            chunk("A red"),
            chunk(" ball: 球."),
            chunk(),
            {"choices": [], "usage": usage, "metok": METOK},
        ]
        self.done = True
        self.error: tuple[int, bytes] | None = None
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers.items()), json.loads(body)))
        if self.server.error:
            self.reply(*self.server.error)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for value in self.server.chunks:
            # As vLLM does: line separators inside of JSON strings are not escaped.
            data = json.dumps(value, ensure_ascii=False)
            self.wfile.write(f"data: {data}\n\n".encode())
        if self.server.done:
            self.wfile.write(b"data: [DONE]\n\n")

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    # Not a multiple of three, and longer than one piece of the upload.
    path.write_bytes(bytes(range(256)) * 1000 + b"!")
    return path


def test_streams_the_answer_and_prints_the_savings(
    server: Server, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(video), 'Which "ball"?', "--url", server.url]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("A red ball: 球.\n")
    table = [line for line in shown.out.splitlines() if "visual tokens" in line]
    assert [word for word in table[0].split() if word[0].isdigit()] == ["1,569", "312", "80.1"]
    deeper = [line.split("│")[1:] for line in shown.out.splitlines() if "from layer" in line]
    assert [[cell.strip() for cell in cells[:3]] for cells in deeper] == [
        ["from layer 2 on", "1,569", "200"],
        ["from layer 4 on", "1,569", "100"],
        ["from layer 6 on", "1,569", "0"],
    ]
    assert "2.50 TFLOP" in shown.out
    assert "500.00 GFLOP" in shown.out
    assert "events: 0.0-20.0 s (key event, relevance 0.250), 20.0-60.0 s (relev" in shown.out
    assert "340 prompt tokens" in shown.out
    assert shown.err == "", "no progress bar where stderr is no terminal"


def test_only_newlines_end_a_line_of_the_stream(
    server: Server, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.chunks[0] = chunk("one\u2028two\x85three")
    assert main(["chat", str(video), "?", "--url", server.url]) == 0
    assert capsys.readouterr().out.startswith("one\u2028two\x85three ball")


def test_the_file_is_sent_unchanged(server: Server, video: Path) -> None:
    question = "metok-video-goes-here?"
    arguments = ["--url", f"{server.url}/v1/", "--api-key", "secret", "--max-tokens", "9"]
    assert main(["chat", str(video), question, *arguments]) == 0
    headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    assert "Transfer-Encoding" not in headers
    part, text = body["messages"][0]["content"]
    kind, _, data = part["video_url"]["url"].partition(",")
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(data, validate=True) == video.read_bytes()
    assert text == {"type": "text", "text": question}
    assert body["model"] == "first"
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (9, 0.0, True)
    assert body["stream_options"] == {"include_usage": True}
    assert "metok" not in body


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (["--no-metok"], {"enabled": False}),
        (["--preset", "max"], {"preset": "max"}),
        (["--num-events", "6"], {"num_events": 6}),
        (["--focus", "conversation"], {"focus": "conversation"}),
        (["--preset", "max", "--num-events", "6"], {"preset": "max", "num_events": 6}),
    ],
)
def test_metok_settings_of_a_request(server: Server, flags: list[str], sent: object) -> None:
    address = "https://example.org/clip.mp4"
    assert main(["chat", address, "?", "--url", server.url, "--model", "second", *flags]) == 0
    body = server.requests[0][1]
    assert body["metok"] == sent
    assert body["model"] == "second"
    assert body["messages"][0]["content"][0]["video_url"]["url"] == address
    assert "media_io_kwargs" not in body


def test_further_questions_go_on_with_the_conversation(
    server: Server, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(video), "Which?", "And then?", "Why?", "--url", server.url]) == 0
    assert capsys.readouterr().out.count("A red ball: 球.\n") == 3
    sent = [body["messages"] for _, body in server.requests]
    assert [len(messages) for messages in sent] == [1, 3, 5]
    assert sent[1][:1] == sent[0]
    assert sent[2][:3] == sent[1]
    answer = {"role": "assistant", "content": "A red ball: 球."}
    assert sent[2][1:] == [
        answer,
        {"role": "user", "content": "And then?"},
        answer,
        {"role": "user", "content": "Why?"},
    ]


def test_questions_are_typed_below_an_answer(server: Server, video: Path) -> None:
    """A terminal asks for another question until an empty line; a pipe does not."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "metok_vllm.cli", "chat", str(video), "Which?"]
    with subprocess.Popen([*command, "--url", server.url], stdin=its, stdout=its) as child:
        os.close(its)
        shown = b""
        for question in (b"And then?", b""):
            while b"Another question" not in shown:
                shown += os.read(ours, 4096)
            os.write(ours, question + b"\n")
            shown = b""
        assert child.wait(60) == 0
    os.close(ours)
    assert [len(body["messages"]) for _, body in server.requests] == [1, 3]


def test_frames_of_a_request(server: Server, video: Path) -> None:
    assert main(["chat", str(video), "?", "--url", server.url, "--frames", "64"]) == 0
    body = server.requests[0][1]
    assert body["media_io_kwargs"] == {"video": {"num_frames": 64}}
    assert "metok" not in body


@pytest.mark.parametrize(
    ("question", "flags", "said"),
    [
        (" ", [], "QUESTION is empty"),
        ("Which?", ["--no-metok", "--preset", "max"], "--no-metok goes with neither"),
        ("Which?", ["--no-metok", "--num-events", "3"], "--no-metok goes with neither"),
        ("Which?", ["--no-metok", "--focus", "video"], "--no-metok goes with neither"),
    ],
)
def test_pointless_requests_are_not_sent(
    server: Server,
    video: Path,
    capsys: pytest.CaptureFixture[str],
    question: str,
    flags: list[str],
    said: str,
) -> None:
    assert main(["chat", str(video), question, "--url", server.url, *flags]) == 2
    assert said in capsys.readouterr().err
    assert server.requests == []


def test_no_proxy_is_used_for_loopback(
    server: Server, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["chat", str(video), "?", "--url", server.url]) == 0


def test_json(server: Server, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(video), "?", "--url", server.url, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "A red ball: 球."
    assert answer["finish_reason"] == "stop"
    assert answer["metok"] == METOK
    assert answer["usage"]["prompt_tokens"] == 340
    assert 0 < answer["time_to_first_token_s"] <= answer["total_s"]


def test_a_plain_server_has_no_report(
    server: Server, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.chunks = [chunk("Hello"), chunk()]
    assert main(["chat", str(video), "?", "--url", server.url]) == 0
    assert "sent no METok report" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (422, b'{"error": {"message": "not a video"}}', "answered 422: not a video"),
        (401, b'{"error": "Unauthorized"}', "answered 401: Unauthorized"),
        (502, b"<html>", "answered 502: Bad Gateway"),
    ],
)
def test_errors_of_the_server(
    server: Server,
    video: Path,
    capsys: pytest.CaptureFixture[str],
    status: int,
    body: bytes,
    said: str,
) -> None:
    server.error = (status, body)
    assert main(["chat", str(video), "?", "--url", server.url]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"metok: the server {said}\n"
    assert shown.out == ""


def test_an_error_within_the_stream(
    server: Server, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.chunks = [chunk("A"), {"error": {"message": "engine died", "code": 500}}]
    assert main(["chat", str(video), "?", "--url", server.url]) == 1
    assert (
        capsys.readouterr().err == "metok: the server ended the stream with an error: engine died\n"
    )


def test_a_stream_without_its_end(
    server: Server, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.done = False
    assert main(["chat", str(video), "?", "--url", server.url]) == 1
    assert "the answer is incomplete" in capsys.readouterr().err
