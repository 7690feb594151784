"""The `metok` command as a user runs it: versions, exit statuses, one line for an error."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from metok_vllm.cli import COMMANDS, main


def run_metok(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metok_vllm.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_version() -> None:
    result = run_metok("--version")
    assert result.returncode == 0
    assert result.stdout.strip() == f"metok-vllm {metadata.version('metok-vllm')}"


def test_help_names_every_command() -> None:
    result = run_metok("--help")
    assert result.returncode == 0
    for command in ("serve", *COMMANDS):
        assert f"  {command} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["unknown"], "invalid choice"),
        (["chat", "no-such.mp4", "What?"], "no such video file: no-such.mp4"),
        (["inspect", "no-such.mp4", "What?"], "no such video file: no-such.mp4"),
        (["inspect", __file__, "What?", "-o", "out.txt"], "-o must end in .png"),
        (["inspect", __file__, "What?", "-o", "no-such-folder/out.png"], "no such folder"),
        (["inspect", __file__, "What?", "--frames", "0"], "--frames must be between 1 and 128"),
        (["inspect", __file__, "What?", "--num-events", "0"], "metok.num_events"),
        (["inspect", __file__, "What?", "--model", "/"], "the model cannot be loaded"),
        (["chat", "http://127.0.0.1/v.mp4", "?", "--url", "ftp://x"], "http:// or https://"),
    ],
)
def test_wrong_calls_end_with_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--model" in arguments:
        from metok_vllm.demo import SAMPLE_VIDEO

        arguments = ["inspect", str(SAMPLE_VIDEO), *arguments[2:]]
    assert status_of(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_file_that_is_no_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(b"not a video at all" * 100)
    assert status_of(["inspect", str(path), "What?"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metok: ")
    assert error.count("\n") == 1


def test_no_server_is_one_line_without_traceback() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # Bound but not listening: a connection is refused.
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        result = run_metok("chat", __file__, "What?", "--url", url)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"metok: no server answers at {url}; start one with `metok serve`\n"


def test_serve_without_vllm_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "from metok_vllm.cli import main; sys.exit(main(['serve', '--demo']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "metok: vLLM is not installed; `metok doctor` says how to get it"
    )


def status_of(arguments: list[str]) -> int:
    """Exit status of a call in this process, argparse's own exits included."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
