"""Draws an Inspection as one picture that shows why each frame keeps its tokens.

Top to bottom: the question and the counts, a legend, a chart over time, and the frames in order.
The chart has the events, each frame's relevance, and its similarity to the frame before. A larger
frame keeps more tokens. The colours are from the colour-blind-safe palette of Okabe and Ito.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from metok_vllm.server.inspect.inspection import InspectedFrame, Inspection
from metok_vllm.server.inspect.timeline_chart import chart_height, draw_chart
from metok_vllm.server.inspect.timeline_style import (
    BACKGROUND,
    EVENT_COLOURS,
    FAINT,
    INK,
    KEY_COLOUR,
    MARGIN,
    MUTED,
    OTHER_COLOUR,
    STRIDE_COLOURS,
    WIDTH,
    fitting,
    font,
    wrapped,
)

THUMBNAIL_SIDE = (168, 112, 72)  # longest side in pixels by stride class, finest first
MANY_FRAMES = 64  # above this all thumbnails shrink by a quarter
BORDER = 3
FRAME_GAP, EVENT_GAP, ROW_GAP = 8, 18, 22
STRIP_HEIGHT = 24
LABEL_SIZE, LABEL_LINE = 13, 16


@dataclass(frozen=True)
class PlacedFrame:
    """A thumbnail's place: left edge and row, and its size in pixels without the border."""

    frame: InspectedFrame
    row: int
    left: int
    width: int
    height: int


def draw_timeline(inspection: Inspection, frames_THWC: NDArray[np.uint8]) -> Image.Image:
    """The picture in RGB, WIDTH pixels wide; its height depends on the number of frames.

    `frames_THWC` are the sampled frames, uint8, in the order of `inspection.frames`.
    """
    T, H, W, _ = frames_THWC.shape
    assert len(inspection.frames) == T
    placed = place_frames(inspection.frames, W / H)
    row_heights = [0] * (placed[-1].row + 1)
    for item in placed:
        row_heights[item.row] = max(row_heights[item.row], item.height + 2 * BORDER)
    title = wrapped(inspection.question, 32, WIDTH - 2 * MARGIN, max_lines=3)
    header = MARGIN + 42 * len(title) + 34 + 44
    chart_top = header + 12
    rows_top = chart_top + chart_height() + 30
    row_extra = STRIP_HEIGHT + 6 + 3 * LABEL_LINE + ROW_GAP
    height = rows_top + sum(row_heights) + row_extra * len(row_heights) + MARGIN - ROW_GAP
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    _draw_header(image, inspection, title)
    draw_chart(image, inspection, chart_top)
    top = rows_top
    for row, row_height in enumerate(row_heights):
        items = [item for item in placed if item.row == row]
        _draw_strips(image, inspection, items, top)
        baseline = top + STRIP_HEIGHT + 6 + row_height
        for item in items:
            _draw_frame(image, item, frames_THWC[placed.index(item)], baseline)
        top += row_height + row_extra
    return image


def place_frames(frames: Sequence[InspectedFrame], aspect: float) -> list[PlacedFrame]:
    """Left to right in time order, wrapped at the margin. `aspect` is width / height."""
    shrink = 0.75 if len(frames) > MANY_FRAMES else 1.0
    placed: list[PlacedFrame] = []
    row, x = 0, MARGIN
    for number, frame in enumerate(frames):
        side = THUMBNAIL_SIDE[frame.stride_class] * shrink
        # Frames of extreme aspect stay visible: no side is shorter than 8 pixels.
        width = max(8, round(side * min(1.0, aspect)))
        height = max(8, round(side / max(1.0, aspect)))
        # The labels below a narrow thumbnail are 54 pixels wide.
        slot = max(width + 2 * BORDER, 54)
        if number and frame.event != frames[number - 1].event and x > MARGIN:
            x += EVENT_GAP - FRAME_GAP
        if x + slot > WIDTH - MARGIN:
            row, x = row + 1, MARGIN
        placed.append(PlacedFrame(frame, row, x, width, height))
        x += slot + FRAME_GAP
    return placed


def _draw_header(image: Image.Image, inspection: Inspection, title: Sequence[str]) -> None:
    draw = ImageDraw.Draw(image)
    y = MARGIN
    for line in title:
        draw.text((MARGIN, y), line, fill=INK, font=font(32, line))
        y += 42
    dense, encoded = inspection.dense_tokens, inspection.encoded_tokens
    saved = f"{100 * (1 - encoded / dense):.0f}% fewer" if encoded <= dense else "more than dense"
    keys = sum(event.key for event in inspection.events)
    counts = (
        f"{len(inspection.frames)} frames of {inspection.duration_s:.1f} s  ·  "
        f"{len(inspection.events)} events, {keys} key  ·  "
        f"dense {dense:,} to {encoded:,} visual tokens ({saved})  ·  {inspection.rule} rule"
    )
    draw.text((MARGIN, y), counts, fill=MUTED, font=font(20))
    y += 34
    _draw_legend(draw, inspection, y)


def _draw_legend(draw: ImageDraw.ImageDraw, inspection: Inspection, y: int) -> None:
    x = MARGIN
    size = 16
    entries = [("key event", KEY_COLOUR), ("other event", OTHER_COLOUR)]
    used = {frame.stride_class for frame in inspection.frames}
    classes = zip(inspection.strides, inspection.tokens_per_frame, STRIDE_COLOURS, strict=True)
    for number, (stride, tokens, colour) in enumerate(classes):
        if number not in used:
            continue
        plural = "token" if tokens == 1 else "tokens"
        entries.append((f"stride {stride}: {tokens} {plural} a frame", colour))
    for number, (label, colour) in enumerate(entries):
        if number < 2:
            draw.rectangle((x, y + 2, x + 28, y + 18), fill=colour)
        else:
            draw.rectangle((x, y + 2, x + 28, y + 18), outline=colour, width=4)
        draw.text((x + 36, y + 1), label, fill=INK, font=font(size))
        x += 36 + round(font(size).getlength(label)) + 30
    note = "r: relevance"
    if any(frame.stride != frame.natural_stride for frame in inspection.frames):
        note += "  ·  rule: stride before the budget"
    draw.text((x, y + 1), note, fill=MUTED, font=font(size))


def _draw_strips(
    image: Image.Image, inspection: Inspection, items: Sequence[PlacedFrame], top: int
) -> None:
    """A bar over the frames of each event in this row, with a label if it fits."""
    draw = ImageDraw.Draw(image)
    for event in dict.fromkeys(item.frame.event for item in items):
        mine = [item for item in items if item.frame.event == event]
        left = mine[0].left
        right = mine[-1].left + max(mine[-1].width + 2 * BORDER, 54)
        key = inspection.events[event].key
        fill, ink = EVENT_COLOURS[key]
        draw.rectangle((left, top, right - 1, top + STRIP_HEIGHT - 1), fill=fill)
        relevance = inspection.events[event].relevance
        kind = "key event" if key else "event"
        label = fitting(
            [
                f"{kind} {event + 1}  ·  relevance {relevance:.3f}",
                f"{kind} {event + 1}",
                f"{event + 1}",
            ],
            15,
            right - left - 12,
        )
        draw.text((left + 7, top + 4), label, fill=ink, font=font(15))


def _draw_frame(
    image: Image.Image, item: PlacedFrame, pixels_HWC: NDArray[np.uint8], baseline: int
) -> None:
    draw = ImageDraw.Draw(image)
    frame = item.frame
    thumbnail = Image.fromarray(pixels_HWC).resize(
        (item.width, item.height), Image.Resampling.LANCZOS
    )
    top = baseline - item.height - 2 * BORDER
    right = item.left + item.width + 2 * BORDER
    draw.rectangle(
        (item.left, top, right - 1, baseline - 1), fill=STRIDE_COLOURS[item.frame.stride_class]
    )
    image.paste(thumbnail, (item.left + BORDER, top + BORDER))
    lines = [(f"{frame.timestamp_s:.1f} s", INK), (f"r {frame.relevance:.3f}", MUTED)]
    if frame.stride != frame.natural_stride:
        lines.append((f"rule: {frame.natural_stride}", FAINT))
    for number, (text, colour) in enumerate(lines):
        y = baseline + 3 + number * LABEL_LINE
        draw.text((item.left + 1, y), text, fill=colour, font=font(LABEL_SIZE))
