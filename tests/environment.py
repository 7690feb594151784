"""The environment that the tests were started with.

Engines in the tests' own process set variables; servers start without these, as for a user.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A server warns about variables that look like METok's settings and are not.
STARTED_WITH = {k: v for k, v in os.environ.items() if not k.startswith("METOK_TEST_")}
