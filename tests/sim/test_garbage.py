"""Half a thousand mixed files with bad ones among them; benchmarks/garbage.py does 100,000."""

from __future__ import annotations

import pytest

from benchmarks import garbage


@pytest.mark.slow
def test_every_file_gives_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(garbage, "BAD_SHARE", 0.1)
    planted = garbage.plant(tmp_path / "files", 500)
    faults = {fault for _, fault, _ in planted if fault}
    assert len(faults) > 10
    cold = garbage.run(planted, 2, tmp_path / "cache")
    assert (cold.rows, cold.wrong) == (500, [])
    assert cold.bodies == sum(not reason for _, _, reason in planted)
    assert cold.fallbacks > 0
    warm = garbage.run(planted, 0, tmp_path / "cache")
    assert (warm.reasons, warm.wrong) == (cold.reasons, [])
