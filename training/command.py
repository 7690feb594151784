"""`python -m training.command`: train the demo model from random weights.

Runs are seeded and counted in steps; a stopped run resumes from its folder. The decoder is trained
on dense input without METok. The alignment towers learn event-QA's own question texts, so METok's
frame ranking is at its best there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from training.answering import (
    fit_projector,
    train_on_attributes,
    train_on_length,
    train_on_vision,
)
from training.checkpoint import video_state, write_checkpoint
from training.material import Material
from training.run import Run, Steps
from training.seeing import train_towers
from training.sizes import Sizes
from training.tokenizers import (
    alignment_tokenizer,
    chat_tokenizer,
    special_ids,
)

NEW_FRAMES = 1000  # added to the seed for the frames of the last phase
PARTS = ("towers", "attributes", "all")


def new_run(folder: Path, seed: int, steps: Steps) -> Run:
    """A run in `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = Sizes()
    chat = chat_tokenizer(sizes.vocab)
    words = alignment_tokenizer(sizes.text_vocab)
    return Run(sizes, folder, seed, chat, words, special_ids(chat), steps)


def train_all(run: Run, out: Path) -> None:
    """Run every phase and write the checkpoint."""
    towers = train_towers(run)
    student, attributes = train_on_attributes(run)
    first = Material(run, towers, run.seed)
    projector = fit_projector(run, attributes, first)
    train_on_vision(run, student, projector, first)
    train_on_length(run, student, projector, first, Material(run, towers, run.seed + NEW_FRAMES))
    video = video_state(towers, projector, student, run.sizes)
    write_checkpoint(out, run.sizes, video, towers.state_dict())


def main() -> None:
    """Train the chosen part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the run, for resuming")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--part", choices=PARTS, default="all", help="towers and attributes are independent"
    )
    for name, default in Steps().__dict__.items():
        parser.add_argument(f"--{name}-steps", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    steps = Steps(**{name: getattr(chosen, f"{name}_steps") for name in Steps().__dict__})
    run = new_run(chosen.work, chosen.seed, steps)
    match chosen.part:
        case "towers":
            train_towers(run)
        case "attributes":
            train_on_attributes(run)
        case _:
            train_all(run, chosen.out)
            print(json.dumps({"checkpoint": str(chosen.out), "steps": steps.__dict__}))


if __name__ == "__main__":
    main()
