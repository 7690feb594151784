"""Validators that fail over a value's type make a 400 of it, on every route."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from metok_vllm.server.api.body_types import guard_bodies, is_validators
from tests.server.test_endpoint import call


class Careless(BaseModel):
    """As vLLM's chat request, which reads its fields before their types are checked."""

    options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def read(cls, data: Any) -> Any:
        if data.get("options") is not None:
            data["options"].get("json")
        return data


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.post("/ask")
    async def ask(body: Careless) -> str:
        return str(body.options)

    guard_bodies(app)
    return app


@pytest.mark.parametrize("options", [" ", 5, ["json"], True])
def test_a_value_of_a_wrong_type(app: FastAPI, options: Any) -> None:
    response = call(app, "POST", "/ask", json={"options": options})
    assert response.status_code == 422, response.text  # made a 400 by our handler of such errors


def test_errors_of_validators_are_told_from_others() -> None:
    errors: list[Exception] = []
    for data in ({"structured_outputs": " "}, 5):
        try:
            if isinstance(data, dict):
                ChatCompletionRequest.model_validate({"messages": [], "model": "m", **data})
            else:
                data.get("json")  # type: ignore[attr-defined]
        except Exception as error:
            errors.append(error)
    assert [is_validators(error) for error in errors] == [True, False]
    assert not is_validators(ValueError("never raised"))


def test_good_bodies_pass(app: FastAPI) -> None:
    assert call(app, "POST", "/ask", json={"options": {"a": 1}}).json() == "{'a': 1}"
    assert call(app, "POST", "/ask", json={}).json() == "None"
    assert call(app, "POST", "/ask", json=[]).status_code == 422
