from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import vllm
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from metok_vllm.errors import ConfigError, MediaDeadlineError, MediaForbiddenError
from metok_vllm.server.api.log_filter import LOGGERS, ClientMistakes, quiet_client_mistakes


def logged(error: Exception) -> logging.LogRecord | None:
    record = logging.LogRecord("vllm.x", logging.ERROR, "", 1, "Error: %s", (error,), None)
    record.exc_info = (type(error), error, None)
    return record if ClientMistakes().filter(record) else None


@pytest.mark.parametrize(
    "error", [ConfigError("bad"), MediaForbiddenError("bad"), MediaDeadlineError("bad")]
)
def test_a_client_s_mistake_is_one_line(error: Exception) -> None:
    logging.getLogger("vllm.x").setLevel(logging.INFO)
    record = logged(error)
    assert record is not None
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert record.getMessage() == f"A request was refused: {type(error).__name__}: bad"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError("broken"), TypeError("broken")])
def test_the_server_s_own_keeps_its_traceback(error: Exception) -> None:
    record = logged(error)
    assert record is not None
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_a_refusal_is_one_short_line() -> None:
    logging.getLogger("vllm.x").setLevel(logging.INFO)
    refusal = create_error_response(f"The model `{'a' * 100_000}` does not exist.")
    record = logging.LogRecord("vllm.x", logging.ERROR, "", 1, "Error: %s", (refusal,), None)
    assert ClientMistakes().filter(record)
    assert record.levelno == logging.INFO
    assert len(record.getMessage()) < 300


def test_the_loggers_are_vllm_s() -> None:
    quiet_client_mistakes()
    quiet_client_mistakes()
    root = Path(vllm.__file__).parents[1]
    for name in LOGGERS:
        source = (root / (name.replace(".", "/") + ".py")).read_text()
        assert "logger.exception(" in source or "logger.error(" in source
        assert re.search(r"^logger = [\w.]+\(__name__\)$", source, re.MULTILINE)
        filters = logging.getLogger(name).filters
        assert sum(isinstance(one, ClientMistakes) for one in filters) == 1
