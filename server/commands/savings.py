"""The `metok` object of a response as a table: what one answer cost, dense and with METok."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def savings_table(metok: Mapping[str, Any]) -> Table:
    """Visual tokens, KV blocks and decoder FLOPs, as far as the server reports them."""
    tokens = metok.get("visual_tokens") or {}
    blocks = metok.get("kv_blocks") or {}
    flops = metok.get("decoder_prefill_flops") or {}
    table = Table(title="What METok saved", title_justify="left")
    for heading in ("", "dense", "METok", "saved"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    rows = [
        ("visual tokens", tokens.get("dense"), tokens.get("encoded"), count),
        ("KV blocks, prefill", blocks.get("dense"), blocks.get("prefill"), count),
        ("KV blocks, decoding", blocks.get("dense"), blocks.get("decode"), count),
        ("decoder prefill", flops.get("dense"), flops.get("metok"), flop_count),
    ]
    for name, dense, kept, show in rows:
        if dense is not None and kept is not None:
            table.add_row(name, show(dense), show(kept), share_saved(dense, kept))
    return table


def events_line(metok: Mapping[str, Any]) -> str:
    """The events in one line; key events are marked."""
    parts = []
    for event in metok.get("events") or []:
        key = " key" if event.get("key") else ""
        span = f"{event['start_s']:.1f}-{event['end_s']:.1f} s"
        parts.append(f"{span} ({event['relevance']:.3f}{key})")
    return "events: " + ", ".join(parts) if parts else "events: none reported"


def count(value: float) -> str:
    """1569 as 1,569."""
    return f"{value:,.0f}"


def flop_count(value: float) -> str:
    """Floating point operations with the prefix that keeps the number short."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.2f} {prefix}FLOP"
    return f"{value:,.0f} FLOP"


def share_saved(dense: float, kept: float) -> str:
    """How much less, in per cent of the dense figure."""
    if dense <= 0:
        return "-"
    return f"{100 * (1 - kept / dense):.1f} %"
