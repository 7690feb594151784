"""`metok inspect VIDEO "QUESTION"`: the events and strides of stage 1, without a server.

Settings are those that `metok serve` has with the same model, file, environment and flags.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from metok_vllm.config import METokConfig
from metok_vllm.config.checks import ALIGNMENT_MODES
from metok_vllm.config.environment import help_of
from metok_vllm.config.presets import PRESETS
from metok_vllm.console import CommandError, err, out, write_json
from metok_vllm.errors import ConfigError
from metok_vllm.server.savings import share_saved

if TYPE_CHECKING:
    from metok_vllm.server.inspect.inspection import Inspection

# Why frames were ranked without the question, by the values of the server's `fallback` field.
FALLBACKS = {"no_towers": "No alignment towers", "no_query": "No question"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def _count_or_share(text: str) -> int | float:
    return float(text) if "." in text else int(text)


# Fields of METokConfig that are options, and how argparse reads them.
SETTINGS: dict[str, dict[str, Any]] = {
    "preset": {"choices": sorted(PRESETS)},
    "num_events": {"type": int},
    "key_event_ratio": {"type": float},
    "key_frames_per_event": {"type": _count_or_share},
    "alignment_model": {},
    "alignment_mode": {"choices": ALIGNMENT_MODES},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok inspect`."""
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument("question", metavar="QUESTION", help="a question about the video")
    parser.add_argument(
        "-o", "--output", metavar="OUT.png", help="write the timeline picture to this file"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--model", help="path or hub name (default: the embedded demo model)")
    parser.add_argument(
        "--metok-config",
        metavar="FILE",
        help="YAML file that the server is started with (default for the demo model: its own)",
    )
    parser.add_argument("--frames", type=int, help="frames to sample (default: 32)")
    for field in fields(METokConfig):
        if field.name in SETTINGS:
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, help=help_of(field), **SETTINGS[field.name])
    parser.add_argument(
        "--rule",
        choices=("budgeted", "natural"),
        default="budgeted",
        help="budgeted: a fixed token count, as served (default); natural: the paper's rule",
    )


def run(arguments: argparse.Namespace) -> int:
    """Inspect and print. Raises MetokError or CommandError for what the user can correct."""
    path = Path(arguments.video)
    if not path.is_file():
        raise CommandError(f"no such video file: {arguments.video}", 2)
    output = _output(arguments.output)
    console = err()
    waiting = console.status("reading the video") if console.is_terminal else nullcontext()
    with waiting:
        inspection, fallback, frames_THWC = _inspect(path, arguments)
    if output:
        from metok_vllm.server.inspect.timeline import draw_timeline

        try:
            draw_timeline(inspection, frames_THWC).save(output)
        except OSError as error:
            raise CommandError(f"cannot write {output}: {error.strerror or error}") from error
    if arguments.json:
        write_json({**inspection.to_dict(), "fallback": fallback})
    else:
        _show(inspection, fallback, output)
    return 0


def _inspect(path: Path, arguments: argparse.Namespace) -> tuple[Inspection, str | None, Any]:
    from metok_vllm.demo import ALIGNMENT_DIR, CONFIG_FILE, MODEL_DIR
    from metok_vllm.events import adjacent_cosine, analyse
    from metok_vllm.hf_loading import model_family
    from metok_vllm.plan.families import patch_times
    from metok_vllm.server.inspect.inspection import build_inspection
    from metok_vllm.server.inspect.loading import load_encoder
    from metok_vllm.video import MediaLimits, read_video

    file = arguments.metok_config
    if file is None and arguments.model is None:
        file = CONFIG_FILE  # as `metok serve --demo`
    family = None if arguments.model is None else model_family(arguments.model)
    given = {name: getattr(arguments, name) for name in SETTINGS}
    config = METokConfig.load(given, file, family=family)
    limits = MediaLimits.from_env()
    frames = arguments.frames if arguments.frames is not None else limits.default_frames
    if not 1 <= frames <= limits.max_frames:
        raise ConfigError(f"--frames must be between 1 and {limits.max_frames}, got {frames}")
    video = read_video(path.read_bytes(), frames, limits=limits)
    encoder = load_encoder(arguments.model or str(MODEL_DIR))
    towers = config.alignment_model or (None if arguments.model else str(ALIGNMENT_DIR))
    if towers and config.alignment_mode != "none":
        encoder.add_towers(towers, shared=config.alignment_mode == "shared")
    features = encoder.encode(
        video.frames_THWC, arguments.question, config.encoder_chunk_frames, video.timestamps_s
    )
    fallback = None
    if features.relevance_T is None:
        fallback = "no_towers" if encoder.towers is None else "no_query"
    # A frame of the layout may be made of several sampled ones; the first stands for them.
    every = features.video.sampled_frames
    inspection = build_inspection(
        analyse(features.feature_TD, features.relevance_T, config),
        adjacent_cosine(features.feature_TD).tolist(),
        video.indices[::every],
        patch_times(video.timestamps_s, every),
        video.duration_s,
        question=arguments.question,
        query_source="user_turn" if arguments.question.strip() else "none",
        video=features.video,
        config=config,
        rule=arguments.rule,
    )
    return inspection, fallback, video.frames_THWC[::every]


def _output(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise CommandError(f"-o must end in {', '.join(IMAGE_SUFFIXES)}, got {name!r}", 2)
    if not path.parent.is_dir():
        raise CommandError(f"no such folder for -o: {path.parent}", 2)
    return path


def _show(inspection: Inspection, fallback: str | None, output: Path | None) -> None:
    console = out()
    table = Table(title="Events", title_justify="left")
    for heading in ("event", "from", "to", "relevance", "", "frames: stride x count"):
        table.add_column(heading, justify="left" if not heading or ":" in heading else "right")
    for number, event in enumerate(inspection.events):
        strides = [f.stride for f in inspection.frames if f.event == number]
        counts = ", ".join(f"{s} x {strides.count(s)}" for s in sorted(set(strides)))
        span = (f"{event.start_s:.1f} s", f"{event.end_s:.1f} s", f"{event.relevance:.3f}")
        table.add_row(str(number + 1), *span, "key" if event.key else "", counts)
    console.print(table)
    dense, encoded = inspection.dense_tokens, inspection.encoded_tokens
    console.print(
        f"{len(inspection.frames)} frames: dense {dense:,} to {encoded:,} visual tokens "
        f"({share_saved(dense, encoded)} saved), {inspection.rule} rule"
    )
    if fallback is not None:
        console.print(
            f"{FALLBACKS[fallback]}: relevance is how much a frame differs from its event's mean."
        )
    if output:
        console.print(f"timeline: {output}", markup=False)
