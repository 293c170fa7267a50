"""Published DINOv2 files: both layouts, recognised by their names, sized by their shapes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dso_jax.models import DINOV2_SIZES, DINOv2Config
from tests.models.sizes import DINOV2S
from tests.weights.test_convert import assert_same_bytes, dinov2_configs, random_state
from weight_port import WeightError, dinov2, files, from_torch, to_torch
from weight_port.models import slots

LAYOUTS = ("dinov2", "dinov2_hf")
SMALL = DINOv2Config(64, 2, 1, mlp_ratio=1.0, patch_size=2, image_size=6, num_registers=2)

# The names in `facebook/dinov2-with-registers-*`, `facebook/dinov2-giant` (weights_in/out) and in
# what transformers 4 and 5 save, with shapes for a width of 8 and a patch of 2.
HUGGING_FACE = {
    "embeddings.cls_token": (1, 1, 8),
    "embeddings.mask_token": (1, 8),
    "embeddings.register_tokens": (1, 4, 8),
    "embeddings.position_embeddings": (1, 10, 8),
    "embeddings.patch_embeddings.projection.weight": (8, 3, 2, 2),
    "embeddings.patch_embeddings.projection.bias": (8,),
    "encoder.layer.0.norm1.weight": (8,),
    "encoder.layer.0.norm1.bias": (8,),
    "encoder.layer.0.attention.attention.query.weight": (8, 8),
    "encoder.layer.0.attention.attention.query.bias": (8,),
    "encoder.layer.0.attention.attention.key.weight": (8, 8),
    "encoder.layer.0.attention.attention.key.bias": (8,),
    "encoder.layer.0.attention.attention.value.weight": (8, 8),
    "encoder.layer.0.attention.attention.value.bias": (8,),
    "encoder.layer.0.attention.output.dense.weight": (8, 8),
    "encoder.layer.0.attention.output.dense.bias": (8,),
    "encoder.layer.0.layer_scale1.lambda1": (8,),
    "encoder.layer.0.norm2.weight": (8,),
    "encoder.layer.0.norm2.bias": (8,),
    "encoder.layer.0.layer_scale2.lambda1": (8,),
    "layernorm.weight": (8,),
    "layernorm.bias": (8,),
}
FEED_FORWARD = {
    "mlp": {
        "fc1.weight": (32, 8),
        "fc1.bias": (32,),
        "fc2.weight": (8, 32),
        "fc2.bias": (8,),
    },
    "swiglu": {
        "weights_in.weight": (48, 8),
        "weights_in.bias": (48,),
        "weights_out.weight": (8, 24),
        "weights_out.bias": (8,),
    },
}


@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_names_of_hugging_face(ffn):
    config = DINOv2Config(8, 1, 2, patch_size=2, image_size=6, ffn=ffn)
    feed_forward = {f"encoder.layer.0.mlp.{name}": s for name, s in FEED_FORWARD[ffn].items()}
    given = {name: slot.torch_shape for slot in slots("dinov2_hf", config) for name in slot.names}
    assert given == HUGGING_FACE | feed_forward


@settings(max_examples=10, deadline=None, derandomize=True)
@given(dinov2_configs)
def test_either_layout_gives_the_other(config):
    hub = random_state("dinov2", config)
    params = from_torch("dinov2", config, hub, place=np.asarray)
    hugging_face = to_torch("dinov2_hf", config, params)
    rows = np.split(np.arange(3 * config.width), 3)
    for part, of_part in zip(("query", "key", "value"), rows, strict=True):
        name = f"encoder.layer.0.attention.attention.{part}.weight"
        np.testing.assert_array_equal(hugging_face[name], hub["blocks.0.attn.qkv.weight"][of_part])
    back = from_torch("dinov2_hf", config, hugging_face, place=np.asarray)
    assert_same_bytes(to_torch("dinov2", config, back), hub)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.sampled_from(LAYOUTS),
    st.builds(
        DINOv2Config,
        width=st.sampled_from([64, 192]),
        num_heads=st.just(1),
        num_blocks=st.integers(1, 11),
        mlp_ratio=st.sampled_from([1.0, 4.0, 49 / 64, 2.671875]),
        patch_size=st.integers(1, 4),
        image_size=st.sampled_from([12, 24]),
        num_registers=st.integers(0, 3),
        ffn=st.sampled_from(["mlp", "swiglu"]),
    ),
)
def test_size_is_read_from_the_shapes(kind, config):
    state = random_state(kind, config)
    found = dinov2.infer_config(state)
    assert from_torch(kind, found, state, place=np.asarray)
    exact = ("width", "num_blocks", "patch_size", "image_size", "num_registers", "ffn", "hidden")
    assert all(getattr(found, key) == getattr(config, key) for key in exact)
    assert found.num_heads == config.width // 64


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", DINOV2_SIZES)
def test_published_sizes_are_recognised(name, kind):
    config = DINOV2_SIZES[name]
    empty = np.zeros((), np.float32)
    state = {
        tensor: np.broadcast_to(empty, slot.torch_shape)
        for slot in slots(kind, config)
        for tensor in slot.names
    }
    if kind == "dinov2_hf":
        config = dataclasses.replace(config, interpolate_offset=0.0)
    assert dinov2.infer_config(state) == config


@pytest.mark.parametrize("kind", LAYOUTS)
def test_files_are_read(tmp_path, kind):
    state = random_state(kind, SMALL)
    files.write(tmp_path / "model.safetensors", state)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        config, params = dinov2.read(path, place=np.asarray)
        assert config == SMALL
        assert_same_bytes(to_torch(kind, config, params), state)


def test_torch_hub_file_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "dinov2_vitl14_reg4_pretrain.pth"
    state = random_state("dinov2", SMALL)
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    config, params = dinov2.read(path, dtype=np.float16)
    assert config == SMALL
    expected = {name: array.astype(np.float16) for name, array in state.items()}
    assert_same_bytes(to_torch("dinov2", config, params), expected)


@pytest.mark.parametrize("prefix", ["dinov2.", "dinov2_with_registers."])
def test_classifier_is_left_out(tmp_path, prefix, caplog):
    state = random_state("dinov2_hf", SMALL)
    whole = {prefix + name: array for name, array in state.items()}
    whole |= {"classifier.weight": np.ones((3, 128), np.float32)}
    files.write(tmp_path / "model.safetensors", whole)
    with caplog.at_level("INFO"):
        config, params = dinov2.read(tmp_path, place=np.asarray)
    assert "classifier.weight left out" in caplog.text
    assert_same_bytes(to_torch("dinov2_hf", config, params), state)
    files.write(tmp_path / "model.safetensors", whole | {"head.weight": np.ones(3, np.float32)})
    with pytest.raises(WeightError, match=r"unexpected head\.weight"):
        dinov2.read(tmp_path)


def change(name, array):
    def apply(state):
        if array is None:
            del state[name]
        else:
            state[name] = array

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("cls_token"), "not a DINOv2: among its 35 tensors is neither"),
        (change("patch_embed.proj.weight", None), r"missing +patch_embed\.proj\.weight"),
        (change("pos_embed", np.ones(3, np.float32)), r"pos_embed is \(3,\), expected 3 axes"),
        (change("cls_token", np.ones((1, 1, 65), np.float32)), "width 65 is not a multiple of 64"),
        (change("pos_embed", np.ones((1, 9, 64), np.float32)), r"pos_embed is \(1, 9, 64\)"),
        (change("blocks.1.ls2.gamma", None), r"missing +blocks\.1\.ls2\.gamma"),
        (
            change("blocks.4000000.ls2.gamma", np.ones(64, np.float32)),
            r"unexpected blocks\.4000000",
        ),
        (change("head.weight", np.ones(3, np.float32)), r"unexpected head\.weight"),
    ],
)
def test_faults_name_the_file_and_the_tensor(tmp_path, edit, message):
    state = random_state("dinov2", SMALL)
    edit(state)
    files.write(tmp_path / "w.safetensors", state)
    with pytest.raises(WeightError, match=message) as raised:
        dinov2.read(tmp_path / "w.safetensors")
    assert str(raised.value).startswith(str(tmp_path / "w.safetensors"))


def test_config_given_by_the_caller_is_used(tmp_path):
    config = DINOV2S["swiglu"]  # of 20 channels, from which no number of heads follows
    files.write(tmp_path / "w.safetensors", random_state("dinov2", config))
    assert dinov2.read(tmp_path / "w.safetensors", config)[0] is config
