"""The options of `metok calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from metok_vllm.config.checks import ALIGNMENT_MODES
from metok_vllm.console import CommandError

BUDGETS = {"quality": 0.01, "balanced": 0.05, "max": 0.2}
DTYPES = ("float32", "bfloat16", "float16")
STDOUT = "-"
DEMO = "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok calibrate`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="folder or hub name of a LLaVA-OneVision, Qwen2.5-VL or Qwen3-VL; demo is the "
        "embedded model",
    )
    parser.add_argument("--checkpoint", choices=(DEMO,), help="the embedded model")
    parser.add_argument("--videos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="one a line, or JSON with video and question (default: questions.json or "
        "questions.txt in the folder, else general questions)",
    )
    parser.add_argument("--out", type=Path, default=Path("metok.yaml"), help="default: metok.yaml")
    parser.add_argument("--chart", type=Path, metavar="CURVE.png", help="draw the curves here")
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="the complete result as JSON, into FILE or in place of the tables",
    )
    parser.add_argument(
        "--divergence",
        nargs="+",
        metavar="NATS",
        help="one number for --preset-name, or name=number ... "
        "(default: quality=0.01 balanced=0.05 max=0.2)",
    )
    parser.add_argument(
        "--preset-name", default="balanced", help="the setting to write to --out (balanced)"
    )
    parser.add_argument(
        "--num-videos", type=int, default=16, help="every second one is held out (default: 16)"
    )
    parser.add_argument("--questions-per-video", type=int, default=2, help="at most (default: 2)")
    parser.add_argument("--frames", type=int, default=32, help="of each video (default: 32)")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer (default: 16)")
    parser.add_argument("--max-groups", type=int, help="cache groups at most (default: 12)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--metok-config", type=Path, help="settings of the selection (YAML)")
    parser.add_argument("--alignment-model", help="the alignment model of the server")
    parser.add_argument("--alignment-mode", choices=ALIGNMENT_MODES)


def name_model(a: argparse.Namespace) -> None:
    """Replace the demo's name by its folders and settings, which other options override."""
    if (a.model is None) == (a.checkpoint is None):
        raise CommandError("name one of MODEL and --checkpoint", 2)
    if a.checkpoint is None and (a.model != DEMO or Path(DEMO).exists()):
        return
    from metok_vllm.demo import ALIGNMENT_DIR, CONFIG_FILE, MODEL_DIR

    a.model = str(MODEL_DIR)
    a.alignment_model = a.alignment_model or str(ALIGNMENT_DIR)
    a.metok_config = a.metok_config or CONFIG_FILE
