"""The `metok` object of a response as text for commands: costs dense and with METok, events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def savings_table(metok: Mapping[str, Any]) -> Table:
    """A table of visual tokens, KV blocks and decoder FLOPs that the server reports."""
    tokens = metok.get("visual_tokens") or {}
    blocks = metok.get("kv_blocks") or {}
    flops = metok.get("decoder_prefill_flops") or {}
    table = Table(title="What METok saved", title_justify="left")
    for heading in ("", "dense", "METok", "saved"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    dense = tokens.get("dense")
    rows = [
        ("visual tokens", dense, tokens.get("encoded"), count),
        *((name, dense, kept, count) for name, kept in deeper_layers(metok)),
        ("KV blocks, prefill", blocks.get("dense"), blocks.get("prefill"), count),
        ("KV blocks, decoding", blocks.get("dense"), blocks.get("decode"), count),
        ("decoder prefill", flops.get("dense"), flops.get("metok"), flop_count),
    ]
    for name, before, kept, show in rows:
        if before is not None and kept is not None:
            table.add_row(name, show(before), show(kept), share_saved(before, kept))
    return table


def deeper_layers(metok: Mapping[str, Any]) -> list[tuple[str, int]]:
    """A row name and the visual tokens from each pruning layer on; empty if none is pruned."""
    layers = metok.get("pruning_layers") or []
    stages = (metok.get("visual_tokens") or {}).get("stages") or []
    if len(stages) != len(layers) + 1:
        return []
    rows = zip(layers, stages[1:], strict=True)
    return [(f"  from layer {layer} on", kept) for layer, kept in rows]


def unpruned_line(metok: Mapping[str, Any]) -> str | None:
    """Why stages 2 and 3 did less than their settings; None if they did not."""
    reason = metok.get("unpruned")
    if reason is None:
        return None
    why = {
        "prompt_logprobs": "the request asks for prompt log-probabilities",
    }
    return f"Stages 2 and 3 did less than their settings: {why.get(reason, reason)}."


def blocks_line(metok: Mapping[str, Any]) -> str | None:
    """Why decoding takes more KV blocks than the prefill; None if it does not."""
    blocks = metok.get("kv_blocks") or {}
    if (blocks.get("decode") or 0) <= (blocks.get("prefill") or 0):
        return None
    return (
        "Decoding takes more KV blocks than the prefill: the first token of the answer starts a "
        "new block in some layers."
    )


def events_line(metok: Mapping[str, Any]) -> str:
    """The events in one line, with key events marked."""
    parts = []
    for event in metok.get("events") or []:
        key = "key event, " if event.get("key") else ""
        span = f"{_number(event.get('start_s'), 1)}-{_number(event.get('end_s'), 1)} s"
        parts.append(f"{span} ({key}relevance {_number(event.get('relevance'), 3)})")
    return "events: " + ", ".join(parts) if parts else "events: none reported"


def _number(value: float | None, digits: int) -> str:
    # The server sends null for a number that is not finite.
    return "?" if value is None else f"{value:.{digits}f}"


def count(value: float) -> str:
    """1569 as 1,569."""
    return f"{value:,.0f}"


def flop_count(value: float) -> str:
    """1.5e12 as 1.50 TFLOP."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.2f} {prefix}FLOP"
    return f"{value:,.0f} FLOP"


def share_saved(dense: float, kept: float) -> str:
    """The saving in per cent of the dense figure."""
    if dense <= 0:
        return "-"
    return f"{100 * (1 - kept / dense):.1f} %"
