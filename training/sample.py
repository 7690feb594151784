"""The demo's sample video: one minute, six scenes with hard cuts, H.264 in an mp4.

Writes `sample.mp4`, `scenes.json` with the true cuts, and `questions.json`. Every combination of
background, colour and shape belongs to the held-out split, which training never shows.
Run: `python -m training.sample --out metok_vllm/demo`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metok_vllm.benchmarks.client.videos import encode_mp4
from metok_vllm.benchmarks.eventqa.clips import FPS as MOMENTS_PER_S
from metok_vllm.benchmarks.eventqa.drawing import Pictures, backdrop, draw, finish, stage
from metok_vllm.benchmarks.eventqa.world import COUNTS, Scene

SIDE, FPS, SEED = 240, 12, 60
QUALITY = {"crf": "26", "preset": "slow", "g": "60"}
# Duration in seconds, and scene.
SCENES: tuple[tuple[float, Scene], ...] = (
    (7.0, Scene("green", "blue", "cross", 1, "white", "stripes")),
    (11.0, Scene("orange", "white", "triangle", 2, "blue", "slope")),
    (4.5, Scene("black", "yellow", "star", 3, "green", "plain")),
    (13.0, Scene("yellow", "blue", "square", 1, "purple", "checks")),
    (9.5, Scene("purple", "orange", "square", 4, "white", "plain")),
    (15.0, Scene("white", "red", "circle", 2, "black", "slope")),
)

QUESTIONS = (
    ("What is in the black scene?", "yellow star"),
    ("What colour is the dot in the purple scene?", "white"),
    ("How many shapes are in the purple scene?", "four"),
    ("Which scene comes after the orange scene?", "black"),
    ("Which scene shows a blue square?", "yellow"),
    ("Is there a red star?", "no"),
    ("Is there a purple scene?", "yes"),
    ("Which scene is last?", "white"),
    ("List the scenes in order.", "green orange black yellow purple white"),
)


def frames() -> Iterator[Pictures]:
    """All frames of the minute, uint8 [SIDE, SIDE, 3] each."""
    rng = np.random.default_rng(SEED)
    for seconds, scene in SCENES:
        staged = stage(scene, rng)
        behind_HW3 = backdrop(staged, SIDE)
        for number in range(round(seconds * FPS)):
            yield finish(draw(staged, behind_HW3, number / FPS * MOMENTS_PER_S), 0.0, rng)


def caption(scene: Scene) -> str:
    """A description of a scene."""
    plural = "es" if scene.shape == "cross" else "s"
    things = scene.thing + (plural if scene.count > 1 else "")
    return f"{COUNTS[scene.count - 1]} {things} and a {scene.dot} dot, all on {scene.background}"


def write(out: Path) -> None:
    """`sample.mp4`, `scenes.json` and `questions.json` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "sample.mp4").write_bytes(encode_mp4(frames(), FPS, SIDE, SIDE, QUALITY))
    scenes, start = [], 0.0
    for seconds, scene in SCENES:
        scenes.append({"start_s": start, "end_s": start + seconds, "caption": caption(scene)})
        start += seconds
    questions = [{"question": question, "answer": answer} for question, answer in QUESTIONS]
    for name, content in (("scenes.json", scenes), ("questions.json", questions)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the files to the given folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    out = parser.parse_args().out
    write(out)
    print(f"wrote sample.mp4, {(out / 'sample.mp4').stat().st_size} bytes")


if __name__ == "__main__":
    main()
