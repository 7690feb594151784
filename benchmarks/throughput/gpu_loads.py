"""METok beside plain vLLM at 7B sizes: what `make gpu-check` runs where the engine can.

The decoders and vision towers of LLaVA-OneVision-7B and LongVA-7B without weights, so speed and
memory are theirs and answers are not. Needs the installed package with vLLM for CUDA; on a machine
that has only torch and Triton it says that it left this out.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

MODELS = ("llava-onevision-7b", "longva-7b")
LOAD = (
    *("--frames", "64", "--max-concurrency", "8", "--num-prompts", "16", "--output-len", "16"),
    *("--rounds", "3"),
)
NEEDED = ("vllm", "metok_vllm.server")


def commands() -> list[list[str]]:
    """One `metok bench` a model; results go to a folder of its name below `gpu-check`."""
    bench = [sys.executable, "-m", "metok_vllm.cli", "bench"]
    return [
        [*bench, "--checkpoint", model, *LOAD, "--result-dir", f"gpu-check/{model}"]
        for model in MODELS
    ]


def run(
    dry: bool,
    can_import: Callable[[str], object] = find_spec,
    call: Callable[[Sequence[str]], int] = subprocess.call,
) -> int:
    """Exit status: that of the first command that failed, else 0. `dry` only prints them."""
    missing = [name for name in NEEDED if can_import(name) is None]
    if missing and not dry:
        print(f"no {' and no '.join(missing)} here: the engine at 7B sizes was left out")
        return 0
    for command in commands():
        print(*(["would run:"] if dry else []), *command[1:], flush=True)
        status = 0 if dry else call(command)
        if status:
            return status
    return 0
