"""The JSON schema of a request's `metok` object, as `/docs` and `/openapi.json` show it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.config.environment import help_of
from metok_vllm.config.methods import RULES
from metok_vllm.config.presets import PRESETS


def request_schema() -> dict[str, Any]:
    """Every field that a request may set, with its type and help text.

    Without defaults: those are the server's settings, whatever they are.
    """
    types = TypeAdapter(METokConfig).json_schema()["properties"]
    properties = {}
    for field in fields(METokConfig):
        if field.name in REQUEST_FIELDS:
            kept = {k: v for k, v in types[field.name].items() if k not in ("default", "title")}
            properties[field.name] = {**kept, "description": help_of(field)}
    properties["preset"]["enum"] = list(PRESETS)
    properties["rule"]["enum"] = list(RULES)
    return {"type": "object", "properties": properties, "additionalProperties": False}
