"""The chart of the timeline picture: events, relevance and frame similarity over time."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from metok_vllm.server.inspect.inspection import Inspection
from metok_vllm.server.inspect.timeline_style import (
    BACKGROUND,
    EVENT_COLOURS,
    GRID,
    INK,
    KEY_TINT,
    MARGIN,
    MUTED,
    STRIDE_COLOURS,
    WIDTH,
    fitting,
    font,
)

GUTTER = 190  # width of the panel names and scales on the left
BAND = 46
RELEVANCE = 130
SIMILARITY = 84
GAP = 14
AXIS = 30
# Shapes are drawn this much larger and scaled down, because Pillow does not antialias lines.
SMOOTH = 3

LEFT, RIGHT = MARGIN + GUTTER, WIDTH - MARGIN


def chart_height() -> int:
    """Pixels that `draw_chart` uses below its top."""
    return BAND + GAP + RELEVANCE + GAP + SIMILARITY + AXIS


def time_to_x(time_s: float, duration_s: float) -> float:
    """Horizontal pixel of a moment of the video."""
    return LEFT + (RIGHT - LEFT) * time_s / max(duration_s, 1e-9)


def draw_chart(image: Image.Image, inspection: Inspection, top: int) -> None:
    """Draw the three panels and the time axis into `image`, from `top` down."""
    relevance_top = top + BAND + GAP
    similarity_top = relevance_top + RELEVANCE + GAP
    bottom = similarity_top + SIMILARITY
    scale_r = _scale([frame.relevance for frame in inspection.frames])
    scale_s = _scale(inspection.similarity)
    shapes = Image.new("RGB", (WIDTH * SMOOTH, (bottom - top) * SMOOTH), BACKGROUND)
    pen = _Pen(shapes, top)
    _draw_events(pen, inspection, top, relevance_top, similarity_top)
    _draw_relevance(pen, inspection, relevance_top, scale_r)
    _draw_similarity(pen, inspection, similarity_top, scale_s)
    image.paste(shapes.resize((WIDTH, bottom - top), Image.Resampling.BOX), (0, top))
    _draw_event_labels(image, inspection, top)
    _draw_panel_name(image, relevance_top, RELEVANCE, "relevance (r)", "to the question", scale_r)
    if inspection.similarity:
        name, detail = "similarity", "to frame before"
        _draw_panel_name(image, similarity_top, SIMILARITY, name, detail, scale_s)
    _draw_axis(image, inspection.duration_s, bottom)


def _draw_events(
    pen: _Pen, inspection: Inspection, top: int, relevance_top: int, similarity_top: int
) -> None:
    """The band of events, key events shaded through all panels, and the cuts between events."""
    bottom = similarity_top + SIMILARITY
    for event in inspection.events:
        left = time_to_x(event.start_s, inspection.duration_s)
        right = time_to_x(event.end_s, inspection.duration_s) - 2
        pen.box(left, top, right, top + BAND, EVENT_COLOURS[event.key][0])
        if event.key:
            pen.box(left, relevance_top, right, relevance_top + RELEVANCE, KEY_TINT)
            pen.box(left, similarity_top, right, bottom, KEY_TINT)
    for edge in (relevance_top, relevance_top + RELEVANCE, similarity_top, bottom):
        pen.line([(LEFT, edge), (RIGHT, edge)], GRID, 1)
    for event in inspection.events[1:]:
        x = time_to_x(event.start_s, inspection.duration_s) - 1
        for dash in range(relevance_top, bottom, 9):
            pen.line([(x, dash), (x, dash + 5)], MUTED, 1)


def _draw_relevance(
    pen: _Pen, inspection: Inspection, top: int, scale: tuple[float, float]
) -> None:
    points = [
        (
            time_to_x(frame.timestamp_s, inspection.duration_s),
            _place(frame.relevance, scale, top, RELEVANCE),
        )
        for frame in inspection.frames
    ]
    pen.line(points, MUTED, 1.5)
    for (x, y), frame in zip(points, inspection.frames, strict=True):
        radius = (6.5, 5, 3.5)[frame.stride_class]
        pen.dot(x, y, radius, STRIDE_COLOURS[frame.stride_class])


def _draw_similarity(
    pen: _Pen, inspection: Inspection, top: int, scale: tuple[float, float]
) -> None:
    """A line with the similarity of each frame to the one before; diamonds where events start."""
    frames = inspection.frames
    points = [
        (
            time_to_x(frame.timestamp_s, inspection.duration_s),
            _place(similarity, scale, top, SIMILARITY),
        )
        for frame, similarity in zip(frames[1:], inspection.similarity, strict=True)
    ]
    pen.line(points, MUTED, 1.5)
    for (x, y), before, after in zip(points, frames, frames[1:], strict=False):
        if before.event != after.event:
            pen.diamond(x, y, 6, INK)


class _Pen:
    """Draws on an enlarged canvas in the coordinates of the final picture."""

    def __init__(self, canvas: Image.Image, top: int) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._top = top

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return x * SMOOTH, (y - self._top) * SMOOTH

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        # A very short event would be narrower than the gap to the next; keep it visible.
        self._draw.rectangle((*self._at(x0, y0), *self._at(max(x1, x0 + 1), y1)), fill=fill)

    def line(
        self, points: Sequence[tuple[float, float]], fill: tuple[int, int, int], width: float
    ) -> None:
        scaled = [self._at(x, y) for x, y in points]
        if len(scaled) > 1:
            self._draw.line(scaled, fill=fill, width=round(width * SMOOTH), joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
        x, y = self._at(x, y)
        r = radius * SMOOTH
        around = (x - r, y - r, x + r, y + r)
        self._draw.ellipse(around, fill=fill, outline=BACKGROUND, width=SMOOTH)

    def diamond(self, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
        x, y = self._at(x, y)
        r = radius * SMOOTH
        self._draw.polygon([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], fill=fill)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value of a panel, never equal."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def _place(value: float, scale: tuple[float, float], top: int, height: int) -> float:
    low, high = scale
    inset = 10
    return top + inset + (height - 2 * inset) * (high - value) / (high - low)


def _draw_event_labels(image: Image.Image, inspection: Inspection, top: int) -> None:
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, top + 14), "events", fill=INK, font=font(16))
    for number, event in enumerate(inspection.events, start=1):
        left = time_to_x(event.start_s, inspection.duration_s)
        width = time_to_x(event.end_s, inspection.duration_s) - left - 10
        kind = "key event" if event.key else "event"
        names = [f"{kind} {number}  ·  relevance {event.relevance:.3f}", f"{kind} {number}"]
        names += [f"{number}: {event.relevance:.3f}", f"{number}"]
        one_line = fitting(names[:1], 16, width)
        ink = EVENT_COLOURS[event.key][1]
        if one_line:
            draw.text((left + 8, top + 14), one_line, fill=ink, font=font(16))
            continue
        name = fitting(names[1:], 15, width)
        value = f"{event.relevance:.3f}"
        two_lines = name == names[1] and font(15).getlength(value) <= width
        draw.text((left + 5, top + (5 if two_lines else 15)), name, fill=ink, font=font(15))
        if two_lines:
            draw.text((left + 5, top + 24), value, fill=ink, font=font(15))


def _draw_panel_name(
    image: Image.Image, top: int, height: int, name: str, detail: str, scale: tuple[float, float]
) -> None:
    draw = ImageDraw.Draw(image)
    middle = top + height // 2
    draw.text((MARGIN, middle - 20), name, fill=INK, font=font(16))
    draw.text((MARGIN, middle + 1), detail, fill=MUTED, font=font(14))
    low, high = scale
    for value, y in ((high, top + 2), (low, top + height - 17)):
        text = f"{value:.3f}"
        x = LEFT - 10 - font(13).getlength(text)
        draw.text((x, y), text, fill=MUTED, font=font(13))


def _draw_axis(image: Image.Image, duration_s: float, bottom: int) -> None:
    draw = ImageDraw.Draw(image)
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
    step = next((s for s in steps if duration_s / s <= 14), duration_s / 10)
    tick = 0
    while tick * step <= duration_s + 1e-9:
        time_s = tick * step
        x = round(time_to_x(time_s, duration_s))
        draw.line((x, bottom, x, bottom + 5), fill=MUTED)
        text = f"{time_s:g} s"
        width = font(14).getlength(text)
        draw.text((min(x - width / 2, RIGHT - width), bottom + 9), text, fill=MUTED, font=font(14))
        tick += 1
