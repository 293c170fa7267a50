"""benchmarks/generation.py: what it generates from, what it keeps, what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import generation, generation_inputs
from benchmarks.generation_summary import summary
from dso_jax import image_files, pretrained

ROOT = Path(__file__).resolve().parents[2]
TINY = generation_inputs.SIZES["tiny"]


def test_random_weights_are_a_generator_without_a_layer_of_zeros(tmp_path):
    folder, encoder = generation_inputs.write_pipeline(tmp_path, TINY)
    base = pretrained.load(str(folder))
    config, params = pretrained.load_image_encoder(str(encoder))
    assert (base.flow_config, base.decoder_config) == (TINY.flow, TINY.decoder)
    assert (config.width, config.num_registers) == (TINY.encoder.width, TINY.encoder.num_registers)
    kernel = np.asarray(base.flow_params["blocks"]["self_attn"]["to_qkv"]["kernel"])
    assert kernel.std() == pytest.approx(TINY.flow.model_channels**-0.5, rel=0.05)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    assert np.std(np.asarray(base.flow_params["out_layer"]["kernel"])) > 0.1
    assert np.asarray(params["norm"]["scale"]).mean() == pytest.approx(1, abs=0.1)


def test_pictures_can_be_used_and_differ(tmp_path):
    generation_inputs.write_pictures(tmp_path, 66, 64)
    found = list(image_files.read_all(sorted(tmp_path.iterdir()), image_files.prepared()))
    assert len(found) == 66 and not any(one.error for one in found)
    assert (found[0].pixels != found[1].pixels).any()
    assert (found[0].pixels == found[64].pixels).all()


def test_finished_cases_stay_and_failed_ones_are_tried_again(tmp_path, capsys):
    path = tmp_path / "record.json"
    record = generation.Record(path)

    def fail():
        raise ValueError("no room\nfor more")

    record.run("a", lambda: {"ms": 1.0}, batch=2)
    record.run("b", fail)
    again = generation.Record(path)
    assert again.cases["a"]["batch"] == 2
    assert again.cases["b"]["error"] == "ValueError: no room"
    again.run("a", fail)
    again.run("b", lambda: {"ms": 2.0})
    assert "error" not in json.dumps(generation.Record(path).cases)
    assert "a.ms 1" in capsys.readouterr().out


def test_the_summary_takes_the_tail_apart_and_counts_what_is_not_sampling():
    job = {
        "batch": 4,
        "devices": 2,
        "device": "X",
        "samples": 100,
        "seconds": 11.0,
        "samples_per_s": 100 / 11,
        "samples_a_picture": 4,
        "stages_s": {"sampling": 9.0, "labels": 1.0},
        "compiling_s": 0.0,
        "host_cpu_s_a_sample": 0.1,
    }
    cases = {
        "job/b4": job,
        "sampler/b4": {
            "batch": 4,
            "ms": 720.0,
            "samples_per_s": 5.6,
            "tflops_executed": 1.0,
            "temporary_gib": 1.0,
        },
        "encode/highest": {"ms_a_row": 16.0},
        "labels/9-in-4": {"labels_per_s": 1000.0},
        "torch/b4": {"ms": 900.0},
        "conv/x": {"error": "E: broke"},
    }
    said = summary(cases)
    # 100 samples in 10 s on two devices: 200 ms of a device each, of which the sampler takes 180.
    assert "200.0 ms of a device a sample, but for the 1.0 s at its end" in said
    assert "outside the sampler: 10.0 %" in said
    assert "encoding and labels: 2.78 %" in said  # 4 + 1 of 180 ms
    assert "ours takes 0.800 of it" in said
    assert "312000 samples on 8: 2.2 h" in said  # at 40 a second
    assert "failed: conv/x: E: broke" in said


@pytest.mark.slow
def test_the_whole_at_a_tiny_size(tmp_path):
    out = tmp_path / "tiny.json"
    command = [sys.executable, "benchmarks/generation.py", "--size", "tiny", "--out", str(out)]
    command += ["--batches", "4", "--pictures", "3", "--samples", "2", "--drops", "32"]
    command += [
        "-f",
        "^(job|sampler|decode|labels)",
        "--cases",
        "in-default|bodies|job|s.*b4$|decode",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    cases = json.loads(out.read_text())["cases"]
    assert {"job/b4", "job/b4-noise", "sampler/b4", "decode/fp16", "labels/bodies"} <= set(cases)
    assert cases["job/b4"]["samples"] == 6 and cases["labels/32-in-default"]["stable"] > 0.5
    assert cases["decode/fp16"]["signs_flipped"] < 0.05
