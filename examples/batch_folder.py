"""Answer all questions about the videos of a folder, a line of JSON each, and resume if stopped.

    metok serve --demo
    python examples/batch_folder.py FOLDER --out answers.jsonl --preset max

FOLDER/questions.json is a list of {"video": "a.mp4", "question": "..."}; other fields are copied.
Questions that answers.jsonl has already are not asked again; failed ones are.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.progress import track


def main() -> int:
    """Ask what is left. Returns 1 if a question failed."""
    parser = argparse.ArgumentParser(description="Answer the questions of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("answers.jsonl"))
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--preset", default="balanced", help="off, quality, balanced or max")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=4)
    args = parser.parse_args()

    client = OpenAI(base_url=args.base_url, api_key=args.api_key, timeout=600)
    args.model = args.model or client.models.list().data[0].id
    done = already_answered(args.out)
    questions = json.loads((args.folder / "questions.json").read_text(encoding="utf-8"))
    left = [q for q in questions if (q["video"], q["question"]) not in done]
    print(f"{len(questions) - len(left)} of {len(questions)} are answered already")
    failed = 0
    with args.out.open("a", encoding="utf-8") as file, ThreadPoolExecutor(args.concurrency) as pool:
        asked = {pool.submit(ask, client, question, args): question for question in left}
        console = Console(stderr=True)
        for future in track(as_completed(asked), "asking", total=len(left), console=console):
            try:
                file.write(json.dumps(future.result()) + "\n")
                file.flush()
            except (OpenAIError, OSError) as error:
                failed += 1
                print(f"{asked[future]['video']}: {error}", file=sys.stderr)
    print(f"{len(left) - failed} answered, {failed} failed, in {args.out}")
    return 1 if failed else 0


def already_answered(path: Path) -> set[tuple[str, str]]:
    """The questions of an earlier run. An unfinished last line is cut off."""
    if not path.exists():
        return set()
    complete = path.read_bytes().rpartition(b"\n")[0]
    path.write_bytes(complete + b"\n" if complete else b"")
    lines = map(json.loads, complete.splitlines())
    return {(line["video"], line["question"]) for line in lines}


def ask(client: OpenAI, question: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The question with its answer and the counts of visual tokens."""
    data = base64.b64encode((args.folder / question["video"]).read_bytes()).decode()
    content: list[Any] = [
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}},
        {"type": "text", "text": question["question"]},
    ]
    response = client.chat.completions.create(
        model=args.model,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=args.max_tokens,
        extra_body={
            "metok": {"preset": args.preset},
            "media_io_kwargs": {"video": {"num_frames": args.frames}},
        },
    )
    metok: dict[str, Any] = getattr(response, "metok", None) or {}
    return {
        **question,
        "model_answer": response.choices[0].message.content,
        "visual_tokens": metok.get("visual_tokens"),
    }


if __name__ == "__main__":
    sys.exit(main())
