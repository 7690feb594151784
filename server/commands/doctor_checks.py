"""A check of `metok doctor`, and what is common to checks of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

OK, MISSING, BROKEN = "ok", "missing", "broken"


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


def check(name: str, probe: Callable[[], str], needed: bool = True) -> Check:
    """Run one check. `probe` returns what it found; any error it raises is the result."""
    try:
        return Check(name, OK, probe(), needed=needed)
    except CheckError as failure:
        return Check(name, failure.status, str(failure), failure.fix, needed)
    except Exception as error:  # a broken installation can raise anything
        first_line = (str(error).splitlines() or [""])[0]
        return Check(name, BROKEN, f"{type(error).__name__}: {first_line}", needed=needed)


def version_of(distribution: str, fix: str) -> str:
    """The installed version. Raises CheckError if there is none, or METok needs another."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise CheckError(MISSING, "not installed", fix) from None
    wanted = declared(distribution)
    if wanted is not None and not wanted.specifier.contains(version, prereleases=True):
        detail = f"{version} is installed, METok needs {wanted.specifier}"
        raise CheckError(BROKEN, detail, f'pip install "{distribution}{wanted.specifier}"')
    return version


def declared(distribution: str) -> Any:
    """METok's requirement of a distribution (packaging's Requirement); None if it has none."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return None
    for text in metadata.requires("metok-vllm") or []:
        found = Requirement(text)
        applies = found.marker is None or found.marker.evaluate({"extra": ""})
        if found.name == distribution and applies:
            return found
    return None


def imported(module: str, fix: str) -> str:
    version = version_of(module, fix)
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise CheckError(BROKEN, f"{version} does not load: {error}", fix) from error
    return version
