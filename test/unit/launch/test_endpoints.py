"""Sockets lie where nobody else can go, and killed runs leave nothing for ever."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from slipstream.errors import ConfigError
from slipstream.launch import endpoints
from slipstream.launch.endpoints import make_endpoints, remove_endpoints, remove_leftovers


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(endpoints, "MAX_PATH_BYTES", 50 + len(str(tmp_path)))


def test_the_directory_is_private_and_fresh(tmp_path: Path) -> None:
    first, second = make_endpoints(), make_endpoints()
    assert first != second
    directory = Path(first.scheduler.removeprefix("ipc://")).parent
    assert directory.parent == tmp_path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    remove_endpoints(first)
    assert not directory.exists()


def test_directories_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, mine, foreign = (tmp_path / f"slipstream-{name}-abc" for name in (ended.pid, os.getpid(), "notes"))
    for directory in (dead, mine, foreign):
        directory.mkdir()
    odd = tmp_path / "slipstream-99999999999999999999-x"
    odd.mkdir()
    link = tmp_path / f"slipstream-{ended.pid}-link"
    link.symlink_to(tmp_path / "nowhere")
    remove_leftovers(tmp_path)
    assert not dead.exists()
    assert mine.exists() and foreign.exists() and odd.exists() and link.is_symlink()


def test_a_path_too_long_for_sockets_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints.tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 90)))
    with pytest.raises(ConfigError, match="TMPDIR"):
        make_endpoints()
