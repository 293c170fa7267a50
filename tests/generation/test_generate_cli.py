"""`dso generate`: pictures or toybox objects in, a labelled dataset out; and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dso_jax import background, conditioning, images, pretrained
from dso_jax.cli import main
from dso_jax.dataset import check as dataset_check
from dso_jax.dataset.store import Dataset
from dso_jax.generation import labels as generate_labels
from tests.generation import pictures
from tests.generation.tiny import DINO, Tipping, write_pipeline


def run(*arguments) -> int:
    return main.main(["generate", *map(str, arguments)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_pipeline(folder)
    return folder


@pytest.fixture
def place(weights, tmp_path, monkeypatch):
    """A folder with pictures of two objects, one of them broken, beside a generator of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(background.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(generate_labels, "DropStream", Tipping)
    for path in weights.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("in/chair/000.png", "in/chair/002.png", "in/lamp/000.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pictures.cutout(60, 50, (10, 5, 40, 50), seed=len(name)).save(name)
    (tmp_path / "in/lamp/001.png").write_text("no picture")
    Image.fromarray(pictures.noise(40, 40, 3)).save("opaque.png")
    return tmp_path


OURS = ("--base", "base", "--encoder", "dino.safetensors", "--batch", 4, "--samples", 2)


def test_pictures_become_a_dataset(place, capsys, caplog):
    assert run("--images", "in/*/*.png", "--views", *OURS, "--out", "data") == 0
    said = capsys.readouterr().out
    assert "1 pictures or samples could not be used" in said and "6 samples of 2 objects" in said
    assert "in/lamp/001.png: damaged" in caplog.text
    dataset = Dataset("data")
    keys = [dataset.samples[name].tolist() for name in ("object", "view", "sample")]
    assert keys[0] == ["chair"] * 4 + ["lamp"] * 2
    assert keys[1:] == [[0, 0, 2, 2, 0, 0], [0, 1, 0, 1, 0, 1]]
    prepared = images.prepare(images.open_image("in/chair/002.png"))
    _, params = pretrained.load_image_encoder("dino.safetensors")
    expected = conditioning.encode(DINO, params, prepared[None], batch=16)
    np.testing.assert_allclose(dataset.condition(2), expected[0], rtol=1e-5, atol=1e-5)
    assert dataset_check.check(place / "data").problems == []
    with Image.open("data/contact-sheet.png") as sheet:
        assert sheet.size[0] > 300
    before = {path: path.stat().st_mtime_ns for path in (place / "data").iterdir()}
    assert run("--images", "in/*/*.png", "--views", *OURS, "--out", "data") == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "data").iterdir()} == before


def test_pictures_are_kept_and_the_time_is_told(place):
    line = ("--store", "images", "--meshes", "--timings", "times.json")
    assert run("--images", "in/chair", *OURS, *line, "--out", "data") == 0
    prepared = images.prepare(images.open_image("in/chair/000.png"))
    np.testing.assert_array_equal(Dataset("data", images=True).condition(0), prepared)
    record = json.loads((place / "times.json").read_text())
    assert record["samples"] == 4 and record["protocol"]["name"] == "dso-eval"
    assert {"sampling", "decoding", "labels"} <= set(record["stages"])
    assert record["device"].endswith("cpu cpu") and "jax" in record["versions"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "give either --images or --prompts"),
        ("--images in --prompts toybox", "give either --images or --prompts"),
        ("--images gone.png", "gone.png: no such file, folder or match"),
        ("--images in/lamp/001.png --base base", "generate: in/lamp/001.png: damaged"),
        ("--images opaque.png in/lamp/001.png --base base", "no transparent background"),
        ("--images in/chair --base base --encoder gone.pth", "image encoder 'gone.pth'"),
        ("--images in/chair --base gone", "base 'gone'"),
        ("--images in/chair --base toybox", "none of the first 2 of 2 pictures can be used"),
        ("--prompts toybox:0", "--prompts toybox:0: expected toybox or toybox:COUNT"),
        ("--prompts cars", "--prompts cars: expected toybox"),
        ("--prompts toybox --base base", "--prompts toybox is for --base toybox, not base"),
        ("--prompts toybox --views", "--views is for --images"),
        ("--prompts toybox --store images", "--store"),
        ("--prompts toybox --adapter gone", "gone: no such run or adapter"),
        ("--prompts toybox --protocol gone", "protocol 'gone'"),
        ("--prompts toybox --shard 3/3", "--shard 3/3: expected 0 <= I < N"),
        ("--prompts toybox --samples 0", "--samples: 0: expected at least 1"),
        ("--prompts toybox --seed 2147483648", "seeds go up to 2147483647"),
        ("--prompts toybox --timings in", "--timings in: expected a file"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_no_file(line, message, place, capsys):
    before = sorted(place.rglob("*"))
    assert run(*line.split(), "--out", "data") == 2
    text = capsys.readouterr().err
    assert "error: " in text and message in text
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "message"), [("opaque.png", "is a file"), ("in", "is not empty, and no dataset folder")]
)
def test_only_a_dataset_folder_is_written_to(out, message, place, capsys):
    assert run("--prompts", "toybox", "--out", out) == 2
    assert message in capsys.readouterr().err


def test_strict_stops_at_the_first_picture(place, capsys):
    assert run("--images", "in", "--views", *OURS, "--strict", "--out", "data") == 2
    assert "--strict: in/lamp/001.png: damaged" in capsys.readouterr().err


SMALL_BLOCKS = """
import sys
from dso_jax.generation import dataset as generate_dataset
generate_dataset.BLOCK = 8
from dso_jax.cli import main
line = "generate --prompts toybox:12 --samples 2 --batch 8 --steps 1 --protocol fast --out"
sys.exit(main.main([*line.split(), sys.argv[1]]))
"""


@pytest.mark.slow
def test_kill_9_costs_nothing_but_time(tmp_path):
    """With the real generator and drop: the folder in the end is that of an undisturbed job."""

    def start(out):
        command = [sys.executable, "-c", SMALL_BLOCKS, str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    for wanted in ("unlabelled-*", "latents-00001*", "samples-*"):
        job = start(tmp_path / "killed")
        while job.poll() is None and not list((tmp_path / "killed").glob(wanted)):
            time.sleep(0.01)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    assert start(tmp_path / "killed").wait() == 0
    both = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "killed")
    ]
    assert both[0] == both[1]
