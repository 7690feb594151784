"""For every test: one thread, so that results and times depend on the test alone."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
