"""Folders that appear whole: what a kill leaves behind, and who removes it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from weight_port import WeightError
from weight_port.folders import new_folder

KILLED = """
import os, signal, sys
from weight_port.folders import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "gigabytes").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill(out) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_goes_with_the_next_attempt(tmp_path):
    out = tmp_path / "tuned"
    kill(out)
    kill(tmp_path / "tuned-other")
    (left,) = tmp_path.glob(".tuned-[0-9a-f]*.tmp")
    assert (left / "gigabytes").is_file() and not out.exists()
    (tmp_path / ".tuned-notes.tmp").touch()  # somebody's file
    with new_folder(out) as folder:
        assert not left.exists()
        (folder / "weights").touch()
    names = {path.name for path in tmp_path.iterdir()}
    (other,) = (name for name in names if name.startswith(".tuned-other-"))
    assert names == {"tuned", other, ".tuned-notes.tmp"}
    assert [path.name for path in out.iterdir()] == ["weights"]


def test_a_folder_that_is_being_filled_stays(tmp_path):
    out = tmp_path / "tuned"
    with pytest.raises(WeightError, match="somebody else made it"), new_folder(out) as first:
        with new_folder(out) as second:
            (second / "b").touch()
        assert first.is_dir()
        (first / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
    assert [path.name for path in out.iterdir()] == ["b"]
