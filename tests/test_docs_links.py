"""What README.md and docs/ point at exists: files, modules, commands, flags and result files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from metok_vllm.cli import COMMANDS
from metok_vllm.config import METokConfig
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
CODE = {
    name: "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S)) for name, text in TEXTS.items()
}
SOURCES = "\n".join(
    path.read_text()
    for folder in (
        "metok_vllm",
        "server",
        "benchmarks",
        "examples",
        "training",
        "tools",
        "tests/kernels",
    )
    for path in (ROOT / folder).rglob("*.py")
)
# Flags of vLLM, Docker, pip, grep and lmms-eval that the documents name.
FOREIGN = {
    *("--additional-config", "--allowed-local-media-path", "--api-key", "--kv-cache-dtype"),
    *("--kv-cache-memory-bytes", "--max-model-len", "--max-num-batched-tokens", "--max-num-seqs"),
    *("--mm-processor-cache-gb", "--no-enable-prefix-caching", "--shutdown-timeout", "--dtype"),
    *("--trust-request-mm-kwargs", "--help", "--build-arg", "--gpus", "--ipc", "--rm"),
    *("--force-reinstall", "--no-deps", "--index-url", "--python", "--include"),
    *("--model_args", "--tasks", "--include_path", "--batch_size", "--log_samples"),
    *("--output_path", "--baseline", "--video-pruning-rate"),
}


@pytest.mark.parametrize("page", PAGES, ids=TEXTS)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", TEXTS)
def test_commands_exist(name: str) -> None:
    code = CODE[name]
    modules = re.findall(r"python -m ([\w.]+)", code)
    assert [module for module in modules if not _runs(module)] == []
    commands = set(re.findall(r"^(?:\.venv/bin/)?metok ([a-z]+)", code.replace("`", "\n"), re.M))
    assert commands <= {*COMMANDS, "serve"}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= set(targets)


def _runs(module: str) -> bool:
    """Whether `python -m MODULE` finds a program: a module, or a package with `__main__`."""
    for folder in ("kernels", "server", "benchmarks"):
        module = re.sub(rf"^metok_vllm\.{folder}\b", folder, module)
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("name", TEXTS)
def test_flags_exist(name: str) -> None:
    words = re.findall(r"(?<![\w-])--[a-z][\w-]*", CODE[name])
    flags = {word for word in words if not word.endswith("-")}  # `--metok-` begins many
    known = {*_metok_flags(), *FOREIGN}
    assert [flag for flag in flags if flag not in known and f'"{flag}"' not in SOURCES] == []


def _metok_flags() -> Iterator[str]:
    for cls, prefix in ((METokConfig, ""), (MediaLimits, "media-"), (ServerSettings, "")):
        for field in dataclasses.fields(cls):
            name = field.name.removesuffix("_s") if cls is ServerSettings else field.name
            yield f"--metok-{prefix}{name.replace('_', '-')}"


def test_every_result_file_stands_behind_a_figure() -> None:
    texts = "\n".join([*TEXTS.values(), (ROOT / "metok_vllm/demo/model/README.md").read_text()])
    for path in (ROOT / "benchmarks" / "results").iterdir():
        load = path.name.split(".")[0].removeprefix("throughput_")
        assert path.name in texts or f"| `{load}` |" in texts, f"no document cites {path.name}"


@pytest.mark.parametrize(("name", "most"), [("README.md", 130), ("docs/benchmarks.md", 120)])
def test_short_documents_stay_short(name: str, most: int) -> None:
    assert len(TEXTS[name].splitlines()) <= most
