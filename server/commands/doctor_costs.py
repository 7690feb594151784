"""`metok doctor MODEL`: what a request costs at the flags that `metok serve MODEL` would have."""

from __future__ import annotations

import contextlib
import io
import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from metok_vllm.config import METokConfig
from metok_vllm.console import CommandError, out, write_json
from metok_vllm.plan.costs import (
    TEXT_TOKENS,
    EngineSizes,
    RequestCost,
    assumed,
    costs_json,
    request_costs,
)
from metok_vllm.server.savings import count


def run(model: str, flags: Sequence[str], as_json: bool) -> int:
    """Show the costs as a table or as JSON; `flags` are those of `metok serve`.

    Raises CommandError if vLLM or METok refuse the model or a flag.
    """
    # vLLM logs to stdout, where the table or the JSON goes.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from metok_vllm.engine.request_costs import engine_sizes

    vllm_config = _vllm_config(model, flags)
    settings = getattr(vllm_config.model_config.hf_config, "metok", None)
    if settings is None:
        raise CommandError(
            f"METok does not support the architecture {vllm_config.model_config.architecture}"
        )
    config = METokConfig.from_dict(settings)
    engine = engine_sizes(config, vllm_config)
    costs = request_costs(config, engine)
    if as_json:
        write_json({"model": model, **costs_json(costs, engine)})
        return 0
    console = out()
    console.print(_table(model, costs))
    for line in _notes(costs, engine):
        console.print(line, markup=False)
    return 0


def _vllm_config(model: str, flags: Sequence[str]) -> Any:
    """The VllmConfig of `metok serve MODEL FLAGS` on this machine."""
    from metok_vllm.server.commands import serve_process

    serve_process.prepare_environment()
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
    except ModuleNotFoundError as error:
        raise CommandError("vLLM is not installed; `metok doctor` says how to get it") from error
    from metok_vllm.server.commands import serve_args

    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            args: Namespace = serve_args.parse([model, *flags])
    except SystemExit as error:
        if not error.code:
            raise
        # argparse has printed the usage, and the error as the last line.
        raise CommandError(_last_line(usage.getvalue()), status=2) from error
    try:
        program = AsyncEngineArgs.from_cli_args(args)
        return program.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except Exception as error:  # vLLM, Hugging Face and pydantic raise many classes
        raise CommandError(f"{model} cannot be served: {_one_line(error)}") from error


def _last_line(usage: str) -> str:
    return (usage.strip().splitlines() or [""])[-1].partition("error: ")[2]


def _one_line(error: Exception) -> str:
    """The message of an error without line breaks; of a validation error, the first cause."""
    details = getattr(error, "errors", None)
    text = str(details()[0]["msg"]) if callable(details) else str(error)
    return " ".join(text.split()) or type(error).__name__


def _table(model: str, costs: Sequence[RequestCost]) -> Table:
    """Two columns a request: dense and METok."""
    title = f"A request for one video with {TEXT_TOKENS} tokens of text, {model}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for cost in costs:
        table.add_column(f"{cost.frames} frames\ndense", justify="right")
        table.add_column("\nMETok", justify="right")
    rows: dict[str, list[str]] = {}
    for cost in costs:
        row_blocks = " ".join(map(str, cost.row_blocks)) or "-"
        for name, dense, metok in (
            ("visual tokens", cost.dense.visual_tokens, count(cost.metok.visual_tokens)),
            ("prefill steps", cost.dense.prefill_steps, count(cost.metok.prefill_steps)),
            ("last row blocks", None, row_blocks),
            ("KV, prefill", cost.dense_blocks, count(cost.prefill_blocks)),
            ("KV, decoding", cost.dense_blocks, count(cost.decode_blocks)),
        ):
            rows.setdefault(name, []).extend(["" if dense is None else count(dense), metok])
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _notes(costs: Sequence[RequestCost], engine: EngineSizes) -> list[str]:
    buffer_mib = f"{engine.buffer_bytes / 2**20:,.1f} MiB"
    notes = [
        f"A prefill step has at most {count(engine.chunk_tokens)} tokens of a prompt.",
        "Row blocks are those of stages 1 to 3 in the last step.",
        f"KV is in blocks of {engine.block_size} tokens, summed over all cache groups.",
        f"The prefill buffer has {count(engine.buffer_rows)} rows, {buffer_mib} in each worker.",
    ]
    if (of := assumed(engine)) is not None:
        size = f"{of['height']} x {of['width']} pixels"
        notes.insert(0, f"Frames are taken to be {size} and {of['fps']:g} a second.")
    for name in ("dense", "metok"):
        over = [str(cost.frames) for cost in costs if not getattr(cost, name).fits]
        if over:
            label = "METok" if name == "metok" else name
            notes.append(
                f"Over --max-model-len {count(engine.max_model_len)}: the {label} prompt of "
                f"{', '.join(over)} frames."
            )
    return notes
