"""State dicts to trees and back: byte-equal, bijective, and clear about what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from dso_jax.models import (
    DINOV2_SIZES,
    FLOW_SIZES,
    DecoderConfig,
    DINOv2Config,
    EncoderConfig,
    FlowConfig,
    LoRAConfig,
    lora,
)
from tests.models.sizes import DECODERS, DINOV2S, ENCODERS, FLOWS, arguments
from weight_port import WeightError, from_torch, to_torch
from weight_port.convert import FLOATS, flatten, plan, unflatten
from weight_port.models import slots
from weight_port.rules import Rule
from weight_port.tables import DINOV2_HF, DINOV2_HUB, FLOW, STRUCTURE_VAE

MODELS = [
    *(("flow", config) for config in FLOWS.values()),
    *(("decoder", config) for config in DECODERS.values()),
    *(("encoder", config) for config in ENCODERS.values()),
    *(("dinov2", config) for config in DINOV2S.values()),
    *(("dinov2_hf", config) for config in DINOV2S.values()),
]
TABLES = {
    "flow": FLOW,
    "decoder": STRUCTURE_VAE,
    "encoder": STRUCTURE_VAE,
    "dinov2": DINOV2_HUB,
    "dinov2_hf": DINOV2_HF,
}
PUBLISHED = [("flow", FlowConfig(), 489), ("decoder", DecoderConfig(), 74)]
PUBLISHED += [("encoder", EncoderConfig(), 74)]
TEXT = {"base": 249, "large": 489, "xlarge": 625}
PUBLISHED += [("flow", FLOW_SIZES[f"TRELLIS-text-{size}"], count) for size, count in TEXT.items()]
PUBLISHED += [("dinov2", DINOV2_SIZES["dinov2_vitl14_reg"], 24 * 14 + 8)]
PUBLISHED += [("dinov2_hf", DINOV2_SIZES["dinov2_vitg14"], 40 * 18 + 7)]
SMALL = FLOWS["patch1"]


def random_state(kind, config, dtype: DTypeLike = np.float32, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=slot.torch_shape).astype(dtype)
        for slot in slots(kind, config)
        for name in slot.names
    }


def assert_same_bytes(a, b):
    assert set(a) == set(b)
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


widths = st.integers(1, 5)
flow_configs = st.builds(
    lambda heads, head, patch, side, **rest: FlowConfig(
        resolution=patch * side,
        model_channels=heads * head,
        num_heads=heads,
        patch_size=patch,
        **rest,
    ),
    heads=st.integers(1, 3),
    head=widths,
    patch=st.integers(1, 3),
    side=st.integers(1, 2),
    in_channels=widths,
    out_channels=widths,
    cond_channels=widths,
    num_blocks=st.integers(1, 12),
    mlp_ratio=st.sampled_from([1.0, 2.5, 4.0]),
    qk_rms_norm=st.booleans(),
    qk_rms_norm_cross=st.booleans(),
    share_mod=st.booleans(),
)
levels = st.lists(widths, min_size=1, max_size=3).map(tuple)
vae_sizes = {
    "latent_channels": widths,
    "channels": levels,
    "num_res_blocks": st.integers(1, 2),
    "num_res_blocks_middle": st.sampled_from([1, 2, 11]),
}
dinov2_configs = st.builds(
    lambda heads, head, patch, side, **rest: DINOv2Config(
        width=heads * head,
        num_heads=heads,
        patch_size=patch,
        image_size=patch * side,
        interpolate_antialias=False,
        **rest,
    ),
    heads=st.integers(1, 3),
    head=widths,
    patch=st.integers(1, 3),
    side=st.integers(1, 3),
    num_blocks=st.integers(1, 12),
    mlp_ratio=st.sampled_from([1.0, 2.5, 4.0]),
    num_registers=st.integers(0, 3),
    ffn=st.sampled_from(["mlp", "swiglu"]),
)
any_model = st.one_of(
    st.tuples(st.sampled_from(["dinov2", "dinov2_hf"]), dinov2_configs),
    st.tuples(st.just("flow"), flow_configs),
    st.tuples(st.just("decoder"), st.builds(DecoderConfig, out_channels=widths, **vae_sizes)),
    st.tuples(st.just("encoder"), st.builds(EncoderConfig, in_channels=widths, **vae_sizes)),
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(any_model, st.sampled_from(FLOATS))
def test_round_trip_is_byte_equal_for_any_size(model, dtype):
    kind, config = model
    state = random_state(kind, config, dtype)
    params = from_torch(kind, config, state)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
    assert_same_bytes(to_torch(kind, config, params), state)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(any_model, st.data())
def test_every_tensor_that_does_not_fit_is_named(model, data):
    kind, config = model
    state = random_state(kind, config)
    names = data.draw(st.permutations(sorted(state)))
    missing, misshapen, integer = names[:3]
    del state[missing]
    state[misshapen] = state[misshapen][None]
    state[integer] = state[integer].astype(np.int64)
    state["blocks.x.weight"] = np.zeros(2, np.float32)
    with pytest.raises(WeightError) as raised:
        from_torch(kind, config, state, source="weights.safetensors")
    found = {(problem.kind, problem.name) for problem in raised.value.problems}
    assert found == {
        ("missing", missing),
        ("shape", misshapen),
        ("dtype", integer),
        ("unexpected", "blocks.x.weight"),
    }
    message = str(raised.value)
    assert message.startswith("weights.safetensors does not fit")
    assert all(name in message for _, name in found)


@pytest.mark.parametrize(("kind", "config", "count"), PUBLISHED, ids=lambda p: str(p)[:12])
def test_published_size_has_its_tensors(kind, config, count):
    names = [name for slot in slots(kind, config) for name in slot.names]
    assert len(names) == len(set(names)) == count


def test_names_and_shapes_are_those_of_the_torch_models():
    torch = pytest.importorskip("torch")
    from tests.reference.torch_dinov2 import DinoVisionTransformer
    from tests.reference.torch_flow import SparseStructureFlowModel
    from tests.reference.torch_structure import SparseStructureDecoder, SparseStructureEncoder

    classes = {
        "flow": SparseStructureFlowModel,
        "decoder": SparseStructureDecoder,
        "encoder": SparseStructureEncoder,
        "dinov2": DinoVisionTransformer,
    }
    for kind, config in [*MODELS, *((kind, config) for kind, config, _ in PUBLISHED)]:
        if kind not in classes:
            continue
        with torch.device("meta"):
            module = classes[kind](**arguments(config))
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        given = {name: slot.torch_shape for slot in slots(kind, config) for name in slot.names}
        assert given == expected


@pytest.mark.parametrize(("kind", "config"), MODELS)
def test_rules_read_the_same_both_ways(kind, config):
    for slot in slots(kind, config):
        for index, name in enumerate(slot.names):
            block = index // len(slot.rule.parts) if slot.rule.stacked else None
            assert slot.rule.to_ours(name) == (slot.path, block)
        assert [rule for rule in TABLES[kind] if rule.to_ours(slot.names[-1])] == [slot.rule]


def test_no_rule_is_dead():
    used = {slot.rule for kind, config in MODELS for slot in slots(kind, config)}
    assert used == {rule for table in TABLES.values() for rule in table}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("a", "x")], "y has no rule"),
        ([Rule("a", "x"), Rule("b", "y"), Rule("c", "y")], "y has 2 rules"),
        ([Rule("a", "x"), Rule("a", "y")], "a fills 2 leaves"),
    ],
)
def test_tables_that_are_not_bijective_are_refused(rules, message):
    with pytest.raises(WeightError, match=message):
        plan(rules, {"x": np.zeros(1), "y": np.zeros(1)})


@pytest.mark.parametrize(
    "name",
    [
        "blocks.01.norm2.weight",
        "blocks.-1.norm2.weight",
        "blocks.0.norm2.weight.1",
        "x.blocks.0.norm2.weight",
        "blocks.0.norm2.weight\n",
        "blocks.0.self_attn.to_v.weight",
        "blocks_0.norm2.weight",
        "pos_embx",
    ],
)
def test_rules_match_whole_names_only(name):
    assert not any(rule.to_ours(name) for rule in FLOW)


def test_half_marks_what_the_release_keeps_in_16_bits():
    """Linears of the blocks and nothing else: 8.0 in 16 bits for every 0.9 % in fp32."""
    half = {name for slot in slots("flow", FlowConfig()) if slot.rule.half for name in slot.names}
    assert len(half) == 24 * 2 * 8
    assert all(name.startswith("blocks.") and "norm" not in name for name in half)
    vae = {name for slot in slots("decoder", DecoderConfig()) for name in slot.names}
    outer = {
        f"{layer}.{leaf}" for layer in ("input_layer", "out_layer.2") for leaf in ("weight", "bias")
    }
    norms = {name for name in vae if "norm" in name or name.startswith("out_layer.0")}
    kept = {
        n for slot in slots("decoder", DecoderConfig()) if not slot.rule.half for n in slot.names
    }
    assert kept == outer | norms


def test_casts_to_the_released_types_and_back():
    state = random_state("flow", SMALL, np.float16)
    params = from_torch("flow", SMALL, state, dtype=np.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    released = to_torch("flow", SMALL, params, half=np.float16)
    assert released["blocks.1.mlp.mlp.0.weight"].dtype == np.float16
    assert released["blocks.1.norm2.weight"].dtype == np.float32
    assert released["pos_emb"].dtype == np.float32
    assert_same_bytes({n: a.astype(np.float16) for n, a in released.items()}, state)
    mixed = from_torch("flow", SMALL, released, dtype=np.float32, half=ml_dtypes.bfloat16)
    assert mixed["blocks"]["self_attn"]["to_qkv"]["kernel"].dtype == jnp.bfloat16
    assert mixed["input_layer"]["kernel"].dtype == jnp.float32


def test_overflow_in_a_cast_is_named_in_both_directions():
    state = random_state("flow", SMALL)
    state["blocks.1.mlp.mlp.0.weight"][3, :2] = 1e6
    for convert in (
        lambda: from_torch("flow", SMALL, state, half=np.float16),
        lambda: to_torch("flow", SMALL, from_torch("flow", SMALL, state), half=np.float16),
    ):
        with pytest.raises(WeightError, match=r"mlp\.mlp\.0\.weight 2 numbers overflow in float16"):
            convert()


def test_infinity_in_the_source_is_kept():
    """A cast is not the place to judge weights that were already broken."""
    state = random_state("flow", SMALL)
    state["out_layer.bias"][0] = np.inf
    tree = from_torch("flow", SMALL, state, dtype=np.float16)
    assert np.isinf(tree["out_layer"]["bias"][0])


def test_types_that_differ_within_a_stack_are_named():
    state = random_state("flow", SMALL)
    state["blocks.1.norm2.bias"] = state["blocks.1.norm2.bias"].astype(np.float16)
    with pytest.raises(WeightError, match=r"blocks\.1\.norm2\.bias is float16, but blocks\.0\."):
        from_torch("flow", SMALL, state)
    from_torch("flow", SMALL, state, dtype=np.float32)


def test_wrong_model_is_one_short_report_with_all_names_kept():
    state = random_state("decoder", DECODERS["three_levels"])
    with pytest.raises(WeightError) as raised:
        from_torch("flow", FLOWS["patch2_share_mod"], state)
    assert len(str(raised.value).splitlines()) < 50
    assert "more" in str(raised.value)
    named = {problem.name for problem in raised.value.problems if problem.kind != "missing"}
    assert named == set(state)


def test_one_block_too_many_or_too_few():
    longer = FlowConfig(**{**SMALL.__dict__, "num_blocks": SMALL.num_blocks + 1})
    extra = {name for slot in slots("flow", longer) for name in slot.names} - {
        name for slot in slots("flow", SMALL) for name in slot.names
    }
    for give, want, kind in ((longer, SMALL, "unexpected"), (SMALL, longer, "missing")):
        with pytest.raises(WeightError) as raised:
            from_torch("flow", want, random_state("flow", give))
        assert {(p.kind, p.name) for p in raised.value.problems} == {(kind, name) for name in extra}


@pytest.mark.parametrize(
    ("rename", "hint"),
    [
        (lambda name: "module." + name, "DistributedDataParallel"),
        (lambda name: "base_model.model." + name.replace("to_q.", "to_q.base_layer."), "DSO"),
        (lambda name: f"base_model.model.{name}.lora_A.weight", "holds a LoRA adapter"),
    ],
)
def test_usual_mistakes_are_guessed(rename, hint):
    state = {rename(name): value for name, value in random_state("flow", SMALL).items()}
    with pytest.raises(WeightError, match=hint):
        from_torch("flow", SMALL, state)


def test_params_with_an_adapter_are_refused():
    params = from_torch("flow", SMALL, random_state("flow", SMALL))
    params = lora.attach(params, LoRAConfig(rank=2), jax.random.key(0))
    with pytest.raises(WeightError, match="strip or merge"):
        to_torch("flow", SMALL, params)


def test_params_of_another_size_are_refused():
    params = from_torch("flow", SMALL, random_state("flow", SMALL))
    flat = flatten(params)
    del flat["out_layer/bias"]
    flat["pos_emb"] = flat["pos_emb"][1:]
    with pytest.raises(WeightError) as raised:
        to_torch("flow", SMALL, unflatten(flat))
    assert {(p.kind, p.name) for p in raised.value.problems} == {
        ("missing", "out_layer/bias"),
        ("shape", "pos_emb"),
    }


def test_kind_and_config_must_agree():
    with pytest.raises(WeightError, match="flow needs a FlowConfig, got DecoderConfig"):
        to_torch("flow", DecoderConfig(), {})
    with pytest.raises(WeightError, match="'slat': expected flow, encoder, decoder"):
        to_torch("slat", FlowConfig(), {})  # type: ignore[arg-type]
