"""`python -m metok_vllm.benchmarks.eventqa`: write a folder of event-QA clips and questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from metok_vllm.benchmarks.eventqa.clips import FORMS, FREE, QUESTIONS_FILE, write_folder
from metok_vllm.benchmarks.eventqa.questions import ALL_KINDS, KINDS
from metok_vllm.benchmarks.eventqa.world import SPLITS


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(prog="metok_vllm.benchmarks.eventqa", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--videos", type=int, default=25, help="clips, one question of each kind")
    parser.add_argument("--frames", type=int, default=32, help="frames of each clip, 2 a second")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=ALL_KINDS, default=KINDS)
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=FREE, help="free-form, multiple choice"
    )
    chosen = parser.parse_args()
    questions = write_folder(
        chosen.out,
        chosen.videos,
        chosen.frames,
        chosen.split,
        chosen.seed,
        tuple(chosen.kinds),
        tuple(chosen.forms),
    )
    print(f"wrote {chosen.videos} clips and {len(questions)} questions ({QUESTIONS_FILE})")


if __name__ == "__main__":
    main()
