"""Draw the demo's sample video: one minute, seven scenes with hard cuts, H.264 in an mp4.

Writes `sample.mp4` and `scenes.json`, the truth about the cuts. No randomness: every frame is a
function of its time. Run from the repository root: `python -m scripts.make_sample_video`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, FPS = 320, 240, 12
# Drawn at twice the size and scaled down: PIL's shapes have no anti-aliasing.
SCALE = 2

Colour = tuple[int, int, int]
WHITE, BLACK = (250, 250, 245), (25, 25, 35)


class Canvas:
    """PIL drawing in the video's own coordinates."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
        self._draw = ImageDraw.Draw(self.image)

    def box(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        # PIL's end points belong to the shape.
        right, bottom = (x + width) * SCALE - 1, (y + height) * SCALE - 1
        if right >= x * SCALE and bottom >= y * SCALE:
            self._draw.rectangle((x * SCALE, y * SCALE, right, bottom), fill)

    def disc(self, x: float, y: float, rx: float, fill: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse([v * SCALE for v in (x - rx, y - ry, x + rx, y + ry)], fill)

    def shape(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], fill: Colour, width: int
    ) -> None:
        self._draw.line([v * SCALE for v in (*start, *end)], fill, width * SCALE)

    def sky(self, top: Colour, bottom: Colour, height: float = HEIGHT, bands: int = 24) -> None:
        """Vertical gradient in flat bands, which compress well."""
        for band in range(bands):
            share = band / (bands - 1)
            r, g, b = (round(a + (z - a) * share) for a, z in zip(top, bottom, strict=True))
            y = round(height * band / bands)
            self.box(0, y, WIDTH, round(height * (band + 1) / bands) - y, (r, g, b))

    def caption(self, text: str) -> None:
        font = ImageFont.load_default(15 * SCALE)
        self.box(0, HEIGHT - 26, WIDTH, 26, BLACK)
        middle = (WIDTH * SCALE // 2, (HEIGHT - 13) * SCALE)
        self._draw.text(middle, text, WHITE, font, anchor="mm")


def red_ball(c: Canvas, t: float, share: float) -> None:
    c.sky((120, 190, 245), (205, 232, 250), 150)
    c.box(0, 150, WIDTH, 90, (86, 170, 80))
    c.disc(265, 42, 20, (255, 222, 90))
    for cloud in (60, 190):
        for dx, radius in ((-18, 11), (0, 16), (18, 11)):
            c.disc(cloud + dx + 3 * t, 45, radius, WHITE)
    x, radius = 30 + 260 * share, 26
    c.disc(x, 178, radius, (120, 140, 70), 6)
    c.disc(x, 152, radius, (214, 40, 40))
    for spoke in range(3):
        angle = (x / radius) + spoke * 2 * math.pi / 3
        c.disc(x + 14 * math.cos(angle), 152 + 14 * math.sin(angle), 5, (255, 170, 160))


def boat(c: Canvas, t: float, share: float) -> None:
    c.sky((240, 120, 50), (252, 205, 110), 130)
    c.disc(90, 118, 30, (255, 240, 190))
    c.box(0, 125, WIDTH, 115, (30, 62, 120))
    x, y = 40 + 230 * share, 134 + 4 * math.sin(2 * t)
    c.box(x - 2, y - 62, 4, 62, (90, 60, 40))
    c.shape([(x + 4, y - 60), (x + 4, y - 12), (x + 42, y - 12)], WHITE)
    c.shape([(x - 4, y - 54), (x - 4, y - 12), (x - 32, y - 12)], (235, 225, 205))
    c.shape([(x - 42, y - 6), (x + 46, y - 6), (x + 30, y + 16), (x - 28, y + 16)], (140, 40, 40))
    for row in range(4):
        for wave in range(-1, 6):
            left = wave * 64 + (12 + 5 * row) * t % 64
            c.disc(left, 158 + row * 16, 18, (62, 104, 170), 3)


def night(c: Canvas, t: float, share: float) -> None:
    c.sky((8, 8, 30), (24, 22, 62))
    for star in range(36):
        twinkle = 1.2 + 0.8 * math.sin(3 * t + star)
        c.disc(star * 83 % WIDTH, star * star * 37 % 205, twinkle, (200, 205, 240))
    radius, points = 44, []
    for corner in range(10):
        angle = 0.9 * t + corner * math.pi / 5
        reach = radius if corner % 2 == 0 else radius * 0.42
        x = 70 + 180 * share + reach * math.cos(angle)
        points.append((x, 105 + reach * math.sin(angle)))
    c.shape(points, (255, 214, 60))


def train(c: Canvas, t: float, share: float) -> None:
    c.sky((250, 226, 170), (246, 204, 130), 150)
    for left, height in ((-20, 62), (90, 92), (215, 70)):
        c.shape([(left, 150), (left + 65, 150 - height), (left + 130, 150)], (206, 150, 92))
    c.box(0, 150, WIDTH, 90, (228, 184, 112))
    c.box(0, 186, WIDTH, 5, (96, 74, 60))
    x = -40 + 420 * share
    for car in range(4):
        rear = x - car * 62
        c.box(rear, 140, 54, 40, (30, 132, 84) if car else (18, 96, 62))
        for window in range(3):
            c.box(rear + 6 + 16 * window, 147, 11, 12, (240, 245, 200))
        for wheel in (12, 42):
            c.disc(rear + wheel, 181, 7, BLACK)
    c.box(x + 40, 122, 9, 18, (18, 96, 62))
    for puff in range(4):
        c.disc(x + 40 - 17 * puff, 112 - 9 * puff, 7 + 3 * puff, (250, 246, 236))


def balloon(c: Canvas, t: float, share: float) -> None:
    c.sky((232, 120, 180), (252, 196, 214))
    for hill, colour in ((70, (160, 70, 130)), (240, (140, 56, 120))):
        c.disc(hill, 235, 120, colour, 46)
    x, y = 160 + 26 * math.sin(0.9 * t), 190 - 130 * share
    for side in (-1, 1):
        c.line((x + side * 22, y + 24), (x + side * 9, y + 56), (90, 60, 40), 2)
    c.disc(x, y, 40, (108, 44, 168), 42)
    c.disc(x, y, 22, (250, 220, 90), 42)
    c.disc(x, y, 8, (108, 44, 168), 42)
    c.box(x - 11, y + 55, 22, 15, (120, 80, 50))


def snow(c: Canvas, t: float, share: float) -> None:
    c.sky((186, 198, 210), (232, 237, 242), 165)
    c.box(0, 165, WIDTH, 75, (248, 250, 252))
    c.box(110, 105, 100, 72, (150, 82, 58))
    c.shape([(96, 108), (160, 58), (224, 108)], (250, 252, 255))
    c.box(148, 137, 26, 40, (84, 52, 40))
    for window in (122, 182):
        c.box(window, 122, 18, 18, (255, 220, 120))
    c.shape([(262, 170), (286, 70), (310, 170)], (40, 92, 74))
    for flake in range(60):
        x = (flake * 197.8 + 9 * math.sin(t + flake)) % WIDTH
        c.disc(x, (flake * flake * 31 + (26 + flake % 5 * 5) * t) % 215, 2.4, WHITE)


def fish(c: Canvas, t: float, share: float) -> None:
    c.sky((0, 128, 132), (0, 62, 84))
    c.box(0, 196, WIDTH, 44, (170, 150, 96))
    for weed in range(6):
        foot = 26 + weed * 56
        for joint in range(6):
            sway = 5 * math.sin(1.5 * t + weed + joint * 0.6)
            c.disc(foot + sway, 194 - joint * 12, 6, (24, 118, 62), 9)
    x, y = 290 - 250 * share, 98 + 20 * math.sin(1.1 * t)
    wag = 10 * math.sin(7 * t)
    c.shape([(x + 30, y), (x + 62, y - 22 + wag), (x + 62, y + 22 + wag)], (220, 96, 10))
    c.disc(x, y, 40, (250, 132, 24), 24)
    c.box(x - 8, y - 21, 9, 42, WHITE)
    c.disc(x - 24, y - 6, 5, WHITE)
    c.disc(x - 25, y - 6, 2.5, BLACK)
    for bubble in range(5):
        c.disc(
            x - 44 - 5 * bubble, (y - 40 * t - 44 * bubble) % 190, 3 + bubble % 3, (150, 220, 220)
        )


# Lengths in frames, so that every cut falls on a frame.
SCENES: list[tuple[int, str, Callable[[Canvas, float, float], None]]] = [
    (84, "a red ball rolls over the grass", red_ball),
    (132, "a boat sails at sunset", boat),
    (54, "a yellow star spins at night", night),
    (156, "a green train crosses the desert", train),
    (90, "a purple balloon rises", balloon),
    (66, "snow falls on a house", snow),
    (138, "an orange fish swims", fish),
]


def frame(scene: int, index: int) -> np.ndarray:
    """Frame `index` of a scene, (HEIGHT, WIDTH, 3) uint8."""
    length, caption, draw = SCENES[scene]
    canvas = Canvas()
    draw(canvas, index / FPS, index / (length - 1))
    canvas.caption(caption)
    return np.asarray(canvas.image.reduce(SCALE))


def write(out: Path) -> None:
    """Write `sample.mp4` and `scenes.json` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    truth, start = [], 0
    with av.open(str(out / "sample.mp4"), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        # One thread: x264's output depends on their number.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "26", "preset": "slow", "g": "60", "threads": "1"}
        for scene, (length, caption, _) in enumerate(SCENES):
            for index in range(length):
                picture = av.VideoFrame.from_ndarray(frame(scene, index), format="rgb24")
                picture.pts, picture.time_base = start + index, Fraction(1, FPS)
                container.mux(stream.encode(picture))
            end = start + length
            truth.append({"start_s": start / FPS, "end_s": end / FPS, "caption": caption})
            start = end
        container.mux(stream.encode())
    text = json.dumps(truth, indent=2) + "\n"
    (out / "scenes.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parent.parent / "metok_vllm" / "demo"
    parser.add_argument("--out", type=Path, default=default, help="folder to write into")
    out = parser.parse_args().out
    write(out)
    print(f"wrote sample.mp4, {(out / 'sample.mp4').stat().st_size} bytes")


if __name__ == "__main__":
    main()
