"""schemathesis generates requests from our OpenAPI document and sends them to a real server."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from metok_vllm.config import METokConfig
from metok_vllm.demo import CONFIG_FILE
from metok_vllm.errors import ConfigError
from metok_vllm.processes.child_server import ChildServer
from metok_vllm.server.chat.request_fields import request_schema
from tests.conformance.requests import CHAT, chat_body, post, video_part
from tests.layouts import square

pytestmark = pytest.mark.slow

# The same requests each time: the server is one for all, and a failure must come again.
FIXED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def check_refusal(status: int, body: Any) -> None:
    """4xx in OpenAI's envelope, with a message."""
    assert 400 <= status < 500, (status, body)
    error = body["error"]
    assert error["message"].strip()
    assert error["code"] == status


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_whatever_fits_the_schema_is_answered_or_refused(server: ChildServer, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

    @settings(FIXED, max_examples=80)
    @given(case=schema[path]["POST"].as_strategy())
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):  # an answer of thousands of tokens shows no more
            case.body |= {"max_tokens": 4, "max_completion_tokens": 4}
        answer = case.call(timeout=60)
        if answer.status_code != 200:
            check_refusal(answer.status_code, answer.json())

    ask()
    assert post(server, chat_body("Which scene is first?")).status_code == 200


def test_any_metok_object_is_taken_as_the_configuration_takes_it(server: ChildServer) -> None:
    """And as the model does, which does not have every reduction."""
    served = METokConfig.load(config_file=CONFIG_FILE, environ={})
    body = {"required": True, "content": {"application/json": {"schema": request_schema()}}}
    routes = {CHAT: {"post": {"requestBody": body, "responses": {}}}}
    info = {"title": "METok", "version": "0"}
    schema = schemathesis.openapi.from_dict({"openapi": "3.1.0", "info": info, "paths": routes})
    taken = 0

    @settings(FIXED, max_examples=120)
    @given(case=schema[CHAT]["POST"].as_strategy())
    def ask(case: Any) -> None:
        nonlocal taken
        answer = post(server, chat_body("Which scene is first?", video_part(), metok=case.body))
        try:
            config = served.for_request(case.body)
            if 1 in config.running_stages:
                square(1, 8).check_reduction(config.reduce)
        except ConfigError:
            check_refusal(answer.status_code, answer.json())
        else:
            assert answer.status_code == 200, answer.text
            taken += 1

    ask()
    assert taken
