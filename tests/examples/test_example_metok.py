"""The offline example on the embedded demo model. The served ones: conformance/test_examples.py."""

from __future__ import annotations

import pytest

from metok_vllm.demo import QUESTIONS, SAMPLE_VIDEO
from tests.examples.programs import run_example

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


def test_with_and_without_metok() -> None:
    question, answer = QUESTIONS[1]
    done = run_example("example_metok.py", str(SAMPLE_VIDEO), question, VLLM_CPU_KVCACHE_SPACE="1")
    # vLLM logs to stdout too.
    starts = ("without METok: ", "with METok: ")
    dense, metok = (line for line in done.stdout.splitlines() if line.startswith(starts))
    assert dense.endswith(f": {answer}")
    assert metok.endswith(f": {answer}")
    saved = int(dense.split()[2]) - int(metok.split()[2])
    assert saved == 513 - 400  # visual tokens of 32 frames, dense and under `balanced`
