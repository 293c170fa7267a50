"""The benchmarks run at a tiny size and report what their texts promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_weights_are_loaded_and_compared_beside_torch(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, "benchmarks/weights.py", "--size", "tiny", "--batch", "8"]
    command += ["--repeat", "2", "--out", str(tmp_path / "weights.json")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((tmp_path / "weights.json").read_text())
    assert report["error_against_torch_fp32"]["jax float32"]["max"] <= 1e-5
    assert 1e-3 < report["error_against_torch_fp32"]["torch bfloat16"]["rms"] < 3e-2
    assert report["bf16_error_ours_over_torchs"]["rms"] <= 1.1
    for engine in ("jax", "torch"):
        assert len(report["load"][engine]["seconds"]) == 2
        assert report["load"][engine]["host_growth_bytes"] >= 0
