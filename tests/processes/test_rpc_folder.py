"""A server's sockets lie in a folder of its own, and only that is ever removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from metok_vllm.processes import rpc_folder


def test_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environ: dict[str, str] = {}
    rpc_folder.make(environ)
    folder = Path(environ[rpc_folder.VARIABLE])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0, "no other user may connect"
    (folder / "a-socket").touch()
    rpc_folder.remove(environ)
    rpc_folder.remove(environ)
    assert list(tmp_path.iterdir()) == []


def test_a_users_folder_is_left_alone(tmp_path: Path) -> None:
    environ = {rpc_folder.VARIABLE: str(tmp_path)}
    rpc_folder.make(environ)
    rpc_folder.remove(environ)
    assert environ == {rpc_folder.VARIABLE: str(tmp_path)}
    assert tmp_path.exists()
    rpc_folder.remove({})
