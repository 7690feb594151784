"""Rows of the prefill buffer, given to prompts that are prefilled in chunks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError


class BufferRows:
    """Contiguous rows by request, first fit. A prompt's rows are reserved at its first chunk."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._reserved: dict[str, range] = {}

    def __len__(self) -> int:
        """Rows that are reserved."""
        return sum(len(rows) for rows in self._reserved.values())

    def first_row(self, request_id: str) -> int | None:
        """The first row of a request; None without a reservation."""
        rows = self._reserved.get(request_id)
        return None if rows is None else rows.start

    def reserve(self, request_id: str, num_rows: int) -> bool:
        """Whether the request has its rows now; False where no gap is long enough."""
        if request_id in self._reserved:
            return True
        start = 0
        for rows in sorted(self._reserved.values(), key=lambda rows: rows.start):
            if rows.start - start >= num_rows:
                break
            start = rows.stop
        if start + num_rows > self.num_rows:
            return False
        self._reserved[request_id] = range(start, start + num_rows)
        return True

    def keep(self, request_ids: Collection[str]) -> None:
        """Free the rows of all other requests."""
        for request_id in self._reserved.keys() - set(request_ids):
            self.release(request_id)

    def release(self, request_id: str) -> None:
        """Free the rows of a request; idempotent."""
        self._reserved.pop(request_id, None)


def buffer_size(config: METokConfig, vllm_config: Any) -> int:
    """Rows of the prefill buffer: the setting, else twice the longest prompt; 0 without need.

    Raises ConfigError where the longest prompt would not fit.
    """
    longest = int(vllm_config.model_config.max_model_len)
    scheduler = vllm_config.scheduler_config
    if longest <= int(scheduler.max_num_batched_tokens) and scheduler.max_num_seqs == 1:
        return 0
    if config.prefill_buffer_tokens is None:
        return 2 * longest
    if config.prefill_buffer_tokens < longest:
        raise ConfigError(
            f"metok.prefill_buffer_tokens {config.prefill_buffer_tokens} is less than the longest "
            f"prompt, --max-model-len {longest}",
            "prefill_buffer_tokens",
        )
    return config.prefill_buffer_tokens
