"""Conditions equal those of torch, whatever the batch they come in."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dso_jax import conditioning, image_files
from dso_jax.generation import batches
from tests.models.comparison import FORWARD, difference
from tests.models.sizes import DINOV2S, arguments
from weight_port import from_torch

torch = pytest.importorskip("torch")

from tests.reference import torch_dinov2  # noqa: E402
from tests.reference.torch_tools import arrays, randomize  # noqa: E402

CONFIG = DINOV2S["registers"]
EDGE = CONFIG.image_size
# bf16 has a relative step of 4e-3; after the blocks of a small network a few steps remain.
BF16 = 0.02


@pytest.fixture(scope="module")
def model():
    return randomize(torch_dinov2.DinoVisionTransformer(**arguments(CONFIG)), 0).eval()


@pytest.fixture(scope="module")
def params(model):
    return from_torch("dinov2", CONFIG, arrays(model))


def pictures(count: int, edge: int = 40, channels: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(2)
    shape = (count, edge, edge + 9, channels)
    return [Image.fromarray(x) for x in rng.integers(0, 256, shape, dtype=np.uint8)]


def reference(model, shown: list[Image.Image]) -> np.ndarray:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = []
    for picture in shown:
        small = picture.resize((EDGE, EDGE), Image.Resampling.LANCZOS).convert("RGB")
        unit = np.array(small).astype(np.float32) / 255
        channels = [(unit[:, :, c] - mean[c]) / std[c] for c in range(3)]
        batch.append(torch.from_numpy(np.stack(channels).astype(np.float32)))
    with torch.no_grad():
        tokens = model(torch.stack(batch))
        return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]).numpy()


@pytest.mark.parametrize("channels", [3, 4])
def test_conditions_equal_torch(model, params, channels):
    shown = pictures(3, channels=channels)
    ours = conditioning.encode(CONFIG, params, shown, batch=2)
    tokens = 1 + CONFIG.num_registers + CONFIG.grid**2
    assert (ours.shape, ours.dtype) == ((3, tokens, CONFIG.width), np.float32)
    assert difference(ours, reference(model, shown)) <= FORWARD


def test_prepared_pixels_are_taken_as_they_are(model, params):
    """The encoder's own size needs no scaling; any other is scaled as a picture is."""
    for edge in (EDGE, 31):
        pixels = np.random.default_rng(0).integers(0, 256, (2, edge, edge, 3), dtype=np.uint8)
        expected = reference(model, [Image.fromarray(x) for x in pixels])
        assert difference(conditioning.encode(CONFIG, params, pixels), expected) <= FORWARD


def test_from_a_file_to_its_condition(model, params, tmp_path):
    picture = pictures(1, edge=60, channels=4)[0]
    picture.save(tmp_path / "a.png")
    (prepared,) = image_files.read_all([tmp_path / "a.png"], image_files.prepared())
    assert prepared.pixels is not None
    ours = conditioning.encode(CONFIG, params, prepared.pixels[None])
    assert difference(ours, reference(model, [Image.fromarray(prepared.pixels)])) <= FORWARD


def test_a_token_whose_features_hardly_vary_is_normalised_with_torchs_epsilon(params):
    """Weights that give every token nearly equal features: the variance is below epsilon."""
    flat = jax.tree.map(jnp.zeros_like, params)
    offset = 1 + 1e-3 * np.random.default_rng(0).normal(size=CONFIG.width).astype(np.float32)
    flat["cls_token"] = jnp.array(offset)[None, None]
    ours = conditioning.encode(CONFIG, flat, np.zeros((1, EDGE, EDGE, 3), np.uint8))
    tokens = torch.from_numpy(offset)[None]
    expected = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    assert difference(ours[0, :1], expected) <= 1e-4  # of 1 + 1e-3 x fp32 keeps 4 digits of x
    assert np.abs(expected.numpy()).max() < 1.5  # without epsilon: above 2


def test_a_last_batch_is_filled_up_and_compiles_nothing_new(params, monkeypatch):
    traces = []
    features = conditioning.features

    def counted(*args, **options):
        traces.append(1)
        return features(*args, **options)

    monkeypatch.setattr(conditioning, "features", counted)
    conditioning._compiled.cache_clear()
    finished = []
    shown = pictures(5)
    alone = [conditioning.encode(CONFIG, params, [one], batch=2)[0] for one in shown]
    whole = conditioning.encode(CONFIG, params, shown, batch=2, progress=finished.append)
    conditioning._compiled.cache_clear()
    assert len(traces) == 1
    assert finished == [2, 2, 1]
    assert np.array_equal(whole, np.stack(alone))


def test_bf16_blocks_give_fp32_conditions_near_those_of_fp32(params):
    shown = pictures(2)
    full = conditioning.encode(CONFIG, params, shown)
    half = conditioning.encode(CONFIG, params, shown, dtype="bfloat16")
    assert half.dtype == np.float32
    assert 1e-4 < difference(half, full) < BF16


def test_conditions_are_rounded_where_they_are_and_groups_share_no_batch(params):
    shown = np.stack([np.asarray(one) for one in pictures(3)])
    full = conditioning.encode(CONFIG, params, shown, batch=2, groups=[1, 2])
    apart = [conditioning.encode(CONFIG, params, part, batch=2) for part in (shown[:1], shown[1:])]
    assert np.array_equal(full, np.concatenate(apart))
    rounded = conditioning.encode(CONFIG, params, shown, batch=2, result="bfloat16", groups=[1, 2])
    assert np.array_equal(rounded, full.astype(rounded.dtype)) and rounded.itemsize == 2


def test_a_gpu_takes_three_products_of_parts_for_conditions_of_16_bits(params, monkeypatch):
    asked = []

    def compiled(*settings):
        asked.append(settings[2:])
        return lambda params, x: jnp.zeros((len(x), 1, 1), settings[2])

    monkeypatch.setattr(conditioning, "_compiled", compiled)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for result in ("bfloat16", "float32"):
        conditioning.encode(CONFIG, params, pictures(1), result=result)
    assert asked == [("bfloat16", conditioning.THREE_PARTS), ("float32", "highest")]


def test_the_first_convolution_is_exact_under_products_of_parts(params):
    """A precision that is meant for products leaves convolutions their default, which is TF32."""
    run = functools.partial(conditioning.features, CONFIG, precision=conditioning.THREE_PARTS)
    pixels = np.stack([np.asarray(one) for one in pictures(1, edge=EDGE)])[:, :, :EDGE]
    text = jax.jit(run).trace(params, pixels).lower(lowering_platforms=("cuda",)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("HIGHEST" in line for line in convolutions)
    assert "num_primitive_operations = 3" in text


@pytest.mark.gpu
def test_products_of_parts_err_less_than_the_rounding(params):
    pixels = np.stack([np.asarray(one) for one in pictures(2, edge=EDGE)])[:, :, :EDGE]
    full, rough = (
        jax.jit(functools.partial(conditioning.features, CONFIG, precision=precision))(
            params, pixels
        )
        for precision in ("highest", conditioning.THREE_PARTS)
    )
    assert 0 < difference(rough, full) < 2**-12
    assert difference(full.astype(jnp.bfloat16).astype(jnp.float32), full) > 2**-12


def test_the_negative_is_zeros_of_the_same_kind():
    negative = conditioning.unconditional(jnp.ones((2, 3, 4), jnp.bfloat16))
    assert (negative.shape, negative.dtype) == ((2, 3, 4), jnp.bfloat16)
    assert not np.asarray(negative).any()


def test_batches_need_rows():
    with pytest.raises(ValueError, match="nothing to do"):
        batches.run(jnp.sin, np.zeros((0, 3)), size=2)


def test_numbers_that_are_no_pixels_are_refused(params):
    with pytest.raises(TypeError, match="float32, expected uint8"):
        conditioning.encode(CONFIG, params, np.zeros((1, EDGE, EDGE, 3), np.float32))  # type: ignore[arg-type]
