"""The environment that the tests were started with.

Engines in the tests' own process set variables for themselves; a server that got them would be
another one than users start.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

STARTED_WITH = dict(os.environ)
