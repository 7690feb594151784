"""Records the kernel launches of the operations instead of running them; needs no GPU.

The wrappers run on meta tensors with their kernels replaced by recorders. So the compiled kernels
have the constants, types and alignment of real launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}
_OPTIONS = ("num_warps", "num_stages")


@dataclass
class Launch:
    """One kernel with the types, constants and alignment of one call."""

    kernel: JITFunction[Any]
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: list[str]
    options: dict[str, int] = field(default_factory=dict)

    def source(self) -> ASTSource:
        """The launch in the form of `triton.compile`."""
        names = self.kernel.arg_names
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned}
        return ASTSource(self.kernel, self.types, self.constants, attributes)


class Recorder:
    """Replaces a kernel: `recorder[grid](*args, **kwargs)` records the call."""

    def __init__(self, kernel: JITFunction[Any], launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < extent < 2**31 for extent in grid), grid
        # CUDA limits the second and third extent of a grid.
        assert all(extent < 2**16 for extent in grid[1:]), grid
        return self._record

    def _record(self, *args: Any, **kwargs: Any) -> None:
        values = dict(zip(self.kernel.arg_names, args, strict=False))
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        values |= kwargs
        launch = Launch(self.kernel, {}, {}, [], options)
        for parameter in self.kernel.params:
            value = values[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                launch.types[parameter.name] = "constexpr"
                launch.constants[parameter.name] = value
                continue
            launch.types[parameter.name] = _type_of(value)
            # torch's allocations are aligned; a number counts as aligned when 16 divides it.
            if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0):
                launch.aligned.append(parameter.name)
        self.launches.append(launch)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int), value
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@contextmanager
def recording(*modules: ModuleType) -> Iterator[list[Launch]]:
    """Launches of the modules' kernels while the context is open, in order."""
    launches: list[Launch] = []
    replaced = [
        (module, name, kernel)
        for module in modules
        for name, kernel in vars(module).items()
        if name.endswith("_kernel")
    ]
    assert replaced, "a module without kernels"
    for module, name, kernel in replaced:
        setattr(module, name, Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in replaced:
            setattr(module, name, kernel)
