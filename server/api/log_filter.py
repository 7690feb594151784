"""A client's mistake is a short line in the log, no error and no traceback.

vLLM logs some as its own errors before it answers with them: all on the routes for Anthropic's and
Cohere's messages, and everywhere the name of a model that is not served, whatever its length.
"""

from __future__ import annotations

import logging

from starlette.requests import ClientDisconnect
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError

from metok_vllm.server.middleware.envelope import short

LOGGERS = (
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.anthropic.serving",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.cohere.serving",
    "vllm.entrypoints.generate.generative_scoring.serving",
    "vllm.entrypoints.openai.chat_completion.batch_serving",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.entrypoints.scale_out.render.serving",
    "vllm.entrypoints.scale_out.token_in_token_out.serving",
)


class ClientMistakes(logging.Filter):
    """Turns the record of an error that a client caused into one line at INFO."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False where the logger shows no INFO."""
        error = record.exc_info[1] if record.exc_info else None
        answers = record.args if isinstance(record.args, tuple) else ()
        if error is not None and is_client_mistake(error):
            text = f"{type(error).__name__}: {error}"
        elif answers and isinstance(answers[0], ErrorResponse):
            text = answers[0].error.message
        else:
            return True
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "A request was refused: %s", (short(text),)
        record.exc_info = record.exc_text = None
        return logging.getLogger(record.name).isEnabledFor(logging.INFO)


def is_client_mistake(error: BaseException) -> bool:
    """Whether it is answered with a 4xx, or has nobody left to be answered to."""
    # vLLM answers a plain ValueError with 400, too; METok's are all written for the client.
    return isinstance(error, VLLMClientError | ClientDisconnect | ValueError)


def quiet_client_mistakes() -> None:
    """Look after all of vLLM's loggers that do this. Idempotent."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, ClientMistakes) for present in logger.filters):
            logger.addFilter(ClientMistakes())
