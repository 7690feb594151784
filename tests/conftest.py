"""For every test and every server it starts: one thread.

Results and times then depend on the test alone. vLLM's CPU threads spin while they wait; with one
a core, the server's other processes and the client that measures them would hardly run.
"""

from __future__ import annotations

import torch

import tests.environment  # noqa: F401 - before an engine changes it

torch.set_num_threads(1)
