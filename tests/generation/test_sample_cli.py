"""`dso sample`: picture in, mesh and verdict out; the same for the same seed; what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import re

import jax
import numpy as np
import pytest
import trimesh
from PIL import Image

from dso_jax import conditioning, images, mesh_export, pretrained, toybox
from dso_jax.cli import main, sample, sample_prompts
from dso_jax.generation import generate
from dso_jax.models import (
    DecoderConfig,
    DINOv2Config,
    FlowConfig,
    LoRAConfig,
    init_decoder,
    init_dinov2,
    init_flow,
)
from dso_jax.models.lora import adapter_leaves, attach
from dso_jax.sampler import SamplerConfig
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest
from tests.generation import pictures
from weight_port import files, to_torch, write_peft_adapter

QUICK = ("--steps", "2", "--protocol", "fast")
LORA = LoRAConfig(rank=2, alpha=4.0, targets=("to_kv", "to_q"))
DINO = DINOv2Config(64, 1, 1, mlp_ratio=1.0, patch_size=7, image_size=14, num_registers=2)
TOYBOX_FLOW = pretrained.EMBEDDED["toybox"] / "ckpts" / "flow.safetensors"
FAST = Protocol.preset("fast")


def run(*arguments) -> int:
    return main.main(["sample", *map(str, arguments)])


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """What three seeds gave: the file of the best, and what was printed."""
    path, text = tmp_path_factory.mktemp("trio") / "x.glb", io.StringIO()
    with contextlib.redirect_stdout(text):
        assert run("toybox:3", "--out", path, "--seed", 5, "--best-of", 3, *QUICK) == 0
    return path, text.getvalue()


def test_a_mesh_and_one_line_come_out(trio):
    path, text = trio
    mesh = trimesh.load_mesh(path)
    assert mesh.is_volume
    assert mesh.bounds[:, 1] == pytest.approx([0.0, 0.1], abs=1e-6)
    verdict, described = text.splitlines()[-2:]
    assert re.fullmatch(
        r"seed [567] (stands|falls): tilt [\d.]+ deg, margin [\d.]+ deg, "
        r"(at rest|still moving at the end) \(fast\)",
        verdict,
    )
    assert f"{path}: 100 mm high, " in described and ", watertight" in described
    assert sum(line.startswith("│") for line in text.splitlines()) == 3


def test_the_best_of_several_is_the_best_single_one(trio, tmp_path, capsys):
    """Byte for byte; and a picture file is the same prompt as the seed that draws it."""
    path, text = trio
    seed = re.findall(r"^seed (\d+)", text, re.MULTILINE)[0]
    picture = toybox.image_to_uint8(toybox.render(toybox.make_objects([3])))[0]
    Image.fromarray(picture).save(tmp_path / "drawn.png")
    out = tmp_path / "single.glb"
    assert (
        run(tmp_path / "drawn.png", "--base", "toybox", "--out", out, "--seed", seed, *QUICK) == 0
    )
    assert out.read_bytes() == path.read_bytes()
    assert capsys.readouterr().out.splitlines()[0] == text.splitlines()[-2]

    other = tmp_path / "other.glb"
    assert run("toybox:3", "--out", other, "--seed", int(seed) + 1, *QUICK) == 0
    assert other.read_bytes() != path.read_bytes()


def labelled(tilts, margins, reasons=None) -> generate.Labelled:
    half, count = np.radians(tilts) / 2, len(tilts)
    zero = np.zeros(count)
    quaternion = np.stack([np.cos(half), np.sin(half), zero, zero], axis=1)
    rest = Rest.from_states(
        np.zeros((count, 3)),
        quaternion,
        np.full(count, 100),
        np.ones(count, bool),
        reasons or [None] * count,
    )
    return generate.Labelled(np.zeros((count, 2, 2, 2)), rest, np.array(margins))


@pytest.mark.parametrize(
    ("tilts", "margins", "reasons", "best"),
    [
        ([0, 0, 0], [1.0, 3.0, 2.0], None, 1),
        ([90, 0, 0], [9.0, 1.0, 2.0], None, 2),
        ([90, 80, 85], [0.0, 0.0, 0.5], None, 2),
        ([0, 0], [2.0, 2.0], None, 0),
        ([0, 90], [0.0, 0.0], ["empty", None], 1),
    ],
)
def test_the_best_stands_with_the_largest_margin(tilts, margins, reasons, best):
    assert sample._best(labelled(tilts, margins, reasons), FAST) == best


@pytest.fixture
def quick(monkeypatch):
    """Stands in for the generator and the drop, which the refusals below never reach or need."""
    seen = {}

    def latents(base, params, conditions, seeds, *, lora, batch, progress):
        seen.update(params=params, conditions=conditions, lora=lora, sampler=base.sampler)
        return np.zeros((len(seeds), 1))

    solid = np.full((1, 8, 8, 8), -1.0, np.float32)
    solid[:, 2:6, 2:6, 2:6] = 1.0
    monkeypatch.setattr(generate, "sample_latents", latents)
    monkeypatch.setattr(generate, "decode", lambda base, z, batch: solid.repeat(len(z), 0))
    monkeypatch.setattr(
        generate, "label", lambda logits, protocol, progress: labelled([0.0], [45.0])
    )
    return seen


def write_adapter(folder, sha256=None):
    """For the toybox, or one that says it was trained on other weights."""
    base = pretrained.load("toybox")
    params = attach(base.flow_params, LORA, jax.random.key(0))
    write_peft_adapter(folder, params, LORA, base_sha256=sha256 or base.sha256)


def test_an_adapter_and_the_sampler_reach_the_generator(quick, tmp_path):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    write_adapter(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.yaml").write_text("base: toybox\ntrainable: [lora]\n")
    picture = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    picture.save(tmp_path / "x.png")
    out = tmp_path / "x.stl"
    line = ["--adapter", tmp_path / "run", "--steps", 3, "--guidance", 0.5, "--height-mm", 40]
    assert run(tmp_path / "x.png", "--out", out, *line) == 0
    assert quick["lora"] == LORA
    assert (quick["sampler"].steps, quick["sampler"].guidance_weight) == (3, 0.5)
    assert adapter_leaves(quick["params"])
    assert np.ptp(trimesh.load_mesh(out).vertices[:, 2]) == pytest.approx(40, rel=1e-6)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of good and bad input, which is where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample_prompts.background.importlib.util, "find_spec", lambda name: None)
    Image.fromarray(pictures.noise(40, 40, 3)).save("opaque.png")
    (tmp_path / "text.png").write_text("no picture")
    shell = {"name": "TrellisTextTo3DPipeline", "args": {"models": {}, "text_cond_model": "clip"}}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "pipeline.json").write_text(json.dumps(shell))
    (tmp_path / "other").mkdir()
    write_adapter(tmp_path / "other", "0" * 64)
    (tmp_path / "full" / "adapter").mkdir(parents=True)
    write_adapter(tmp_path / "full" / "adapter")
    (tmp_path / "full" / "config.yaml").write_text("base: toybox\ntrainable: [lora, norm]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere.png --base toybox --out x.glb", "nowhere.png"),
        ("text.png --base toybox --out x.glb", "text.png: damaged, or not an image"),
        ("opaque.png --base toybox --out x.glb", "opaque.png: has no transparent background"),
        ("toybox:x --base toybox --out x.glb", "expected toybox:SEED"),
        ("toybox:3 --base texts --out x.glb", "base texts: is conditioned on text"),
        ("toybox:3 --base nowhere --out x.glb", "base 'nowhere'"),
        ("toybox:3 --adapter nowhere --out x.glb", "nowhere: no such run or adapter"),
        ("toybox:3 --adapter full --out x.glb", "full: trained weights of the base too"),
        ("toybox:3 --adapter texts --out x.glb", "no adapter-best and no adapter in it"),
        ("toybox:3 --adapter other --out x.glb", "other/adapter_model.safetensors"),
        ("toybox:3 --out x.fbx", "x.fbx: expected a file name"),
        ("toybox:3 --out gone/x.glb", "no folder gone"),
        ("toybox:3 --out x.glb --protocol gone", "gone"),
        ("toybox:3 --out x.glb --best-of 0", "--best-of"),
        ("toybox:3 --out x.glb --height-mm -1", "--height-mm"),
        ("toybox:3 --out x.glb --seed 2147483647 --best-of 2", "seeds go up to 2147483647"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_no_file(line, message, place, capsys):
    before = sorted(place.rglob("*"))
    assert run(*line.split()) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and message in text
    assert sorted(place.rglob("*")) == before


def write_base(folder, channels):
    """A generator of the smallest size that takes the features of an image encoder."""
    flow = FlowConfig(
        resolution=2, model_channels=12, cond_channels=channels, num_blocks=1, num_heads=3
    )
    decoder, key = DecoderConfig(channels=(4, 2), num_res_blocks=1), jax.random.key(0)
    models = {
        pretrained.FLOW: (flow, init_flow(flow, key)),
        pretrained.DECODER: (decoder, init_decoder(decoder, key)),
    }
    pretrained.save(folder, models, SamplerConfig(), {})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with an image encoder, a generator that takes its features, and one of others."""
    folder = tmp_path_factory.mktemp("weights")
    params = init_dinov2(DINO, jax.random.key(1))
    files.write(folder / "dino.safetensors", to_torch("dinov2", DINO, params))
    for name, channels in (("base", DINO.width), ("wide", DINO.width + 2)):
        (folder / name).mkdir()
        write_base(folder / name, channels)
    return folder, params


@pytest.fixture
def photograph(place, weights):
    """A cut-out picture beside the weights; gives the encoder's."""
    pictures.cutout(60, 50, (10, 5, 40, 50)).save("cut.png")
    folder, params = weights
    for path in folder.iterdir():
        (place / path.name).symlink_to(path)
    return params


def test_a_photograph_is_conditioned_by_the_image_encoder(photograph, quick):
    line = "cut.png --base base --encoder dino.safetensors --out x.obj"
    assert run(*line.split()) == 0
    prepared = images.prepare(images.open_image("cut.png"))
    expected = conditioning.encode(DINO, photograph, prepared[None], batch=1)
    np.testing.assert_array_equal(quick["conditions"], expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cut.png --base toybox", "cut.png: the toybox's generator knows its own pictures alone"),
        ("toybox:3 --base base", "toybox:3: a picture for --base toybox"),
        ("cut.png --base base --encoder gone.pth", "image encoder 'gone.pth': no such file"),
        ("cut.png --base wide --encoder dino.safetensors", "encoder dino.safetensors: gives "),
        ("opaque.png --base base --remover rembg", "rembg"),
        (f"toybox:3 --adapter {TOYBOX_FLOW}", "whole weights of a flow model, no adapter"),
        ("opaque.png --base base --remover gone.onnx", "gone.onnx: no such file"),
    ],
)
def test_picture_encoder_and_generator_must_fit(line, message, photograph, place, capsys):
    before = sorted(place.rglob("*"))
    assert run(*line.split(), "--out", "x.glb") == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and message in text
    assert sorted(place.rglob("*")) == before


def test_samples_without_a_solid_write_nothing(place, capsys, quick, monkeypatch):
    empty = labelled([0.0], [0.0], ["empty"])
    monkeypatch.setattr(generate, "label", lambda *args, **options: empty)
    assert run("toybox:3", "--out", "x.glb") == 2
    assert "no sample is a solid (empty)" in capsys.readouterr().err
    assert not (place / "x.glb").exists()


def test_a_full_disk_is_one_message(place, capsys, quick, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mesh_export, "_write", full)
    (place / "x.glb").write_text("old")
    assert run("toybox:3", "--out", "x.glb") == 2
    assert "x.glb: cannot be written (No space left on device)" in capsys.readouterr().err
    assert (place / "x.glb").read_text() == "old"
