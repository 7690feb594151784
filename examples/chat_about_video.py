"""Several questions about one video, each with the conversation so far, to a running server.

    metok serve --demo
    python examples/chat_about_video.py holiday.mp4 --preset max

Questions are read from the terminal, or a line each from a pipe. METok ranks the events of the
video anew for every question; with `--focus conversation` the first one selects, and each later one
goes on from what the server cached. The video is sent once: later turns name it by its `uuid`.
"""

from __future__ import annotations

import argparse
import base64
import sys
import uuid
from pathlib import Path
from typing import Any

from openai import OpenAI


def main() -> None:
    """Ask until the input ends."""
    parser = argparse.ArgumentParser(description="Chat about a video.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--preset", default="balanced", help="off, quality, balanced or max")
    parser.add_argument("--focus", default="turn", help="turn, conversation or video")
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()

    client = OpenAI(base_url=args.base_url, api_key=args.api_key)
    model = args.model or client.models.list().data[0].id
    data = base64.b64encode(args.video.read_bytes()).decode()
    video: dict[str, Any] = {
        "type": "video_url",
        "video_url": {"url": f"data:video/mp4;base64,{data}"},
        "uuid": uuid.uuid4().hex,
    }
    messages: list[Any] = []
    while question := next_question():
        text = {"type": "text", "text": question}
        messages.append({"role": "user", "content": [text] if messages else [video, text]})
        answer = ask(client, model, messages, args)
        messages.append({"role": "assistant", "content": answer})
        video["video_url"] = None  # the server has it under its uuid


def next_question() -> str:
    """The next line that is not empty; empty text at the end of the input."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return next((line.strip() for line in sys.stdin if line.strip()), "")


def ask(client: OpenAI, model: str, messages: list[Any], args: argparse.Namespace) -> str:
    """Print the answer while it is written, then what METok saved, and return the answer."""
    answer, metok = "", None
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_tokens=256,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={
            "metok": {"preset": args.preset, "focus": args.focus},
            "media_io_kwargs": {"video": {"num_frames": args.frames}},
        },
    )
    for chunk in stream:
        metok = getattr(chunk, "metok", None) or metok
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            print(piece, end="", flush=True)
            answer += piece
    print()
    if metok:
        tokens = metok["visual_tokens"]
        print(f"  [{tokens['encoded']} of {tokens['dense']} visual tokens]")
    return answer


if __name__ == "__main__":
    main()
