"""Trains the demo model in `metok_vllm/demo` on event-QA. Not part of the installed package.

    python -m training.command --work RUN --out metok_vllm/demo/model
    python -m training.sample --out metok_vllm/demo

`command` trains the alignment towers (`seeing`, `towers`), then the decoder (`answering`,
`decoder`), and writes both in their published layouts (`checkpoint`). Frames and questions come
from `metok_vllm.benchmarks.eventqa`; `bank`, `material` and `lessons` turn them into batches. `run`
holds the optimiser loop, which resumes after a stop. `sample` draws the demo's sample video.
"""
