"""The installed vLLM has every method and attribute that the server relies on."""

from __future__ import annotations

import pytest

from metok_vllm.server.vllm_contract import ATTRIBUTES, SIGNATURES
from metok_vllm.vllm_contract import attributes, check, methods


def test_this_vllm_fits() -> None:
    assert check(SIGNATURES, ATTRIBUTES) == []


@pytest.mark.parametrize("target", ATTRIBUTES)
def test_a_missing_attribute_is_named(target: str) -> None:
    (problem,) = check({}, {target: (*ATTRIBUTES[target], "not_there")})
    assert target in problem
    assert "not_there" in problem


def test_no_entry_of_the_engine_is_overridden() -> None:
    assert not SIGNATURES.keys() & methods.SIGNATURES.keys()
    assert not ATTRIBUTES.keys() & attributes.ATTRIBUTES.keys()
