"""The demo with its real work, small: the embedded generator, the simulator, the trainer."""

from __future__ import annotations

import json

import pytest

from dso_jax.cli import main
from tests.project import example

SMALL = {
    "--preference-objects": 24,
    "--preference-samples": 4,
    "--heldout-objects": 8,
    "--heldout-samples": 2,
    "--steps": 4,
    "--exhibits": 2,
}


@pytest.mark.slow
def test_every_stage_runs_and_leaves_its_files(tmp_path, capsys):
    out = tmp_path / "run"
    small = [str(word) for option in SMALL.items() for word in option]
    assert main.main(["demo", "--out", str(out), *small]) == 0
    results = json.loads((out / "summary.json").read_text())
    assert list(results["methods"]) == list(example.METHODS)
    assert (results["objects"], results["samples"]) == (8, 16)
    for method in example.METHODS[1:]:
        assert (out / method / "adapter" / "adapter_model.safetensors").is_file()
        first = json.loads((out / method / "metrics.jsonl").read_text().splitlines()[0])
        assert first["win_drift"] == 0  # the policy starts as the reference, to the bit
        assert results["methods"][method]["guards"]["iou"]["change"] == pytest.approx(0, abs=0.2)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 2 * (1 + 2 * len(example.METHODS))
    assert "DPO" in capsys.readouterr().out
