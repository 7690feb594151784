"""lmms-eval's `openai` model against a METok server: whole videos, and settings for every request.

lmms-eval counts a refused request as a wrong answer. This model ends the run at the first one.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmms_eval.models.chat.openai import OpenAICompatible
from openai import APIStatusError

from metok_vllm.benchmarks.lmms_eval.plugin import (
    is_refusal,
    question_of,
    request_body,
    request_settings,
    unusable,
)


class Metok(OpenAICompatible):
    """`--model metok`; every other argument is one of lmms-eval's `openai` model.

    `metok`: a preset's name, `off` or JSON. `inline`: files are sent as data URLs. `reports`: a
    file for METok's report of every answer, as JSON lines. `strict` false: refused requests are
    counted as wrong, as lmms-eval does, and answers without METok are counted too.
    """

    client: Any

    def __init__(
        self,
        metok: object = "",
        inline: bool = True,
        reports: str | None = None,
        strict: bool = True,
        api_key: str = "none",
        **options: Any,
    ) -> None:
        super().__init__(pass_video_url=True, api_key=api_key, **options)
        self._settings = request_settings(metok)
        self._inline, self._strict = inline, strict
        self._reports = Path(reports) if reports else None
        self._lock = threading.Lock()
        self._send = self.client.chat.completions.create
        completions = SimpleNamespace(create=self._create)
        self.client = SimpleNamespace(chat=SimpleNamespace(completions=completions))

    def _create(self, **payload: Any) -> Any:
        """One request of the openai client. Raises SystemExit, which lmms-eval does not retry."""
        try:
            answer = self._send(**request_body(payload, self._settings, self._inline))
        except APIStatusError as error:
            if self._strict and is_refusal(error.status_code):
                raise SystemExit(f"the server refused a request: {error}") from error
            raise
        except OSError as error:
            raise SystemExit(f"a video cannot be read: {error}") from error
        report = getattr(answer, "metok", None)
        if self._strict and (reason := unusable(report, self._settings)) is not None:
            raise SystemExit(reason)
        if self._reports is not None:
            self._write(question_of(payload), answer.choices[0].message.content, report)
        return answer

    def _write(self, question: str, answer: str, report: Any) -> None:
        assert self._reports is not None
        line = json.dumps({"question": question, "answer": answer, "metok": report})
        with self._lock, self._reports.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
