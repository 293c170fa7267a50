"""Blocks that are kept: found again, never mistaken, whole or not there."""

from __future__ import annotations

import os

import numpy as np

from dso_jax.evaluation.parts import Parts, stamp


def test_a_block_is_made_once(tmp_path):
    parts, calls = Parts(tmp_path / "parts"), []

    def work():
        calls.append(1)
        return {"a": np.array([1.5, np.nan]), "b": np.array(["x", "yy"], object)}

    first, again = parts.get({"n": 1}, work), parts.get({"n": 1}, work)
    assert len(calls) == 1
    np.testing.assert_array_equal(again["a"], first["a"])
    assert again["b"].tolist() == ["x", "yy"]
    parts.get({"n": 2}, work)
    assert len(calls) == 2
    parts.discard()
    assert not (tmp_path / "parts").exists()


def test_a_broken_block_is_made_again(tmp_path):
    parts = Parts(tmp_path)
    parts.get({}, lambda: {"a": np.arange(3)})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert parts.get({}, lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]


def test_a_file_that_changes_has_another_stamp(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0")
    before = stamp([path])
    assert stamp([path]) == before
    os.utime(path, (1, 1))
    assert stamp([path]) != before
    path.unlink()
    assert stamp([path]) not in (before, stamp([]))
