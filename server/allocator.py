"""glibc's allocator in a process that holds large bodies for a moment.

glibc serves larger and larger blocks from its heap once it has seen some, and a heap shrinks only
from its end. Blocks over a fixed size go back to the system as soon as they are freed.
"""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 1 << 20


def return_large_blocks() -> bool:
    """Have blocks over `MMAP_THRESHOLD_BYTES` returned when freed; False where this cannot be."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES))
