"""Run the checks without pytest: `python -m tests.kernels.checks [--device cuda]`.

One line of JSON a check, so that what was done before a crash is known. `METOK_KERNELS` chooses the
implementation; with `TRITON_INTERPRET=1` the Triton kernels run on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.kernels.checks.registry import results


def main() -> int:
    """1 if a check failed."""
    parser = argparse.ArgumentParser(description="kernels against their naive versions")
    parser.add_argument("--device", default="cpu")
    device: str = parser.parse_args().device
    failed = False
    for result in results(device):
        print(json.dumps(result), flush=True)
        failed |= result["error"] is not None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
