"""Colours, fonts and text fitting of the timeline picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageFont

WIDTH = 1600
MARGIN = 40

BACKGROUND = (255, 255, 255)
INK = (34, 40, 46)
MUTED = (92, 100, 108)
FAINT = (138, 145, 153)
GRID = (226, 229, 232)

KEY_COLOUR = (0, 114, 178)
KEY_TINT = (229, 241, 248)
OTHER_COLOUR = (203, 208, 213)
# Fill and ink of an event's bar, by whether it is a key event.
EVENT_COLOURS = {True: (KEY_COLOUR, (255, 255, 255)), False: (OTHER_COLOUR, INK)}
STRIDE_COLOURS = ((213, 94, 0), (240, 188, 66), (138, 145, 153))

# System fonts for questions in other scripts; Pillow's own font has little beyond ASCII.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "Arial.ttf",
)
_BUILT_IN = frozenset("·…‘’“”")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font(size: int, text: str = "") -> Font:
    """The picture's font, or a system font if `text` has characters that it lacks."""
    return _font(size, any(ord(c) > 126 and c not in _BUILT_IN for c in text))


@lru_cache(maxsize=64)
def _font(size: int, wide: bool) -> Font:
    if wide:
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def fitting(variants: Sequence[str], size: int, width: float) -> str:
    """The first of `variants` that fits into `width` pixels, or an empty string."""
    return next((text for text in variants if font(size, text).getlength(text) <= width), "")


def wrapped(text: str, size: int, width: int, max_lines: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a cut text ends in an ellipsis."""
    face = font(size, text)
    lines: list[str] = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if face.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        # A word longer than a line, or a script without spaces, breaks at any character.
        for character in word:
            if face.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and face.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + "…"]
    return lines
