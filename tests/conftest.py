"""For every test and every server it starts: one thread.

Results and times then depend on the test alone. vLLM's CPU threads spin while they wait; with one
a core, the server's other processes and the client that measures them would hardly run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
