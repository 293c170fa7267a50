"""Layouts: recognised by names alone, the same bytes back, and all or nothing."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dso_jax
from dso_jax.models import DecoderConfig, EncoderConfig, FlowConfig, LoRAConfig
from tests.models.sizes import DECODERS, ENCODERS, FLOWS
from tests.weights.layout_world import (
    FLOW,
    LORA,
    random_state,
    same_bytes,
)
from tests.weights.test_convert import flow_configs, vae_sizes, widths
from weight_port import WeightError, convert, dso, files, layouts, layouts_write, models, sizes

SHA = "ab" * 32
DSO_TENSORS, DSO_BYTES = 729, 1_212_510_240  # of DSO's released checkpoints
MODELS = [
    *(("flow", config) for config in FLOWS.values()),
    *(("decoder", config) for config in DECODERS.values()),
    *(("encoder", config) for config in ENCODERS.values()),
]


sized_models = st.one_of(
    st.tuples(st.just("flow"), flow_configs),
    st.tuples(st.just("decoder"), st.builds(DecoderConfig, out_channels=widths, **vae_sizes)),
    st.tuples(st.just("encoder"), st.builds(EncoderConfig, in_channels=widths, **vae_sizes)),
)


def test_the_full_size_is_that_of_dsos_released_files():
    """By shapes alone: nothing of this size is allocated."""
    slots = dso.slots(FlowConfig(), LoRAConfig())
    names = [name for slot in slots for name in slot.names]
    width = {False: 4, True: 2}
    total = sum(
        width[slot.rule.half] * math.prod(slot.torch_shape) * len(slot.names) for slot in slots
    )
    assert len(set(names)) == len(names) == DSO_TENSORS
    assert total == DSO_BYTES
    branches = [slot for slot in slots if slot.names[0].endswith(dso.BRANCH)]
    assert sum(math.prod(slot.shape) for slot in branches) == 20_447_232
    assert "base_model.model.blocks.23.cross_attn.to_kv.lora_B.default.weight" in names
    assert "base_model.model.blocks.0.self_attn.to_qkv.base_layer.bias" in names
    assert "base_model.model.blocks.0.mlp.mlp.0.weight" in names


@settings(max_examples=8, deadline=None, derandomize=True)
@given(sized_models)
def test_sizes_follow_from_the_tensors(model):
    """Whatever the sizes were, those found have the same tensors."""
    kind, config = model
    shapes = {name: s.torch_shape for s in models.slots(kind, config) for name in s.names}
    if kind == "flow":
        found = "flow", sizes.flow_config(shapes, "x")
    elif len(config.channels) == 1:
        with pytest.raises(WeightError, match="one level"):
            sizes.vae(shapes, "x")
        return
    else:
        found = sizes.vae(shapes, "x")
    assert found[0] == kind
    assert {n: s.torch_shape for s in models.slots(*found) for n in s.names} == shapes


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    flow_configs,
    st.integers(1, 4),
    st.sets(st.sampled_from(LORA.targets), min_size=1),
    st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
    st.data(),
)
def test_any_dso_checkpoint_comes_back_to_the_byte(config, rank, targets, dtype, data):
    lora = LoRAConfig(rank, 1.5, tuple(sorted(targets)))
    slots = dso.slots(config, lora)
    names = [name for slot in slots for name in slot.names]
    assert len(names) == len(set(names))
    rng = np.random.default_rng(0)
    state = {
        name: rng.normal(size=slot.torch_shape).astype(
            np.float32 if name.endswith(dso.BRANCH) else dtype
        )
        for slot in slots
        for name in slot.names
    }
    assert dso.is_dso(state)
    assert dso.lora_config(state, "x", 1.5) == lora
    found = sizes.flow_config(dso.base_shapes(state), "x")
    tree = convert.load(dso.slots(found, lora), state, source="x", target="y", place=np.asarray)
    same_bytes(convert.export(dso.slots(found, lora), tree), state)

    missing, misshapen = data.draw(st.permutations(names))[:2]
    broken = {**state, misshapen: state[misshapen][None], "more": np.zeros(1, np.float32)}
    del broken[missing]
    with pytest.raises(WeightError) as raised:
        convert.load(slots, broken, source="x", target="y")
    problems = {(p.kind, p.name) for p in raised.value.problems}
    assert problems == {("missing", missing), ("shape", misshapen), ("unexpected", "more")}


@pytest.mark.parametrize(("kind", "config"), MODELS, ids=lambda x: str(x)[:14])
def test_a_base_is_recognised_and_comes_back_to_the_byte(tmp_path, kind, config):
    state = random_state(kind, config)
    files.write(tmp_path / "a.safetensors", state, {"format": "pt", "trained": "here"})
    read = layouts.read(tmp_path / "a.safetensors")
    assert (read.kind, read.layout, read.lora) == (kind, "base", None)
    layouts_write.write(tmp_path / "b.safetensors", read, "base")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_dso_and_peft_come_back_to_the_byte(dso_file, adapted, base_file, tmp_path):
    """dso -> (base, peft) -> dso, and peft -> dso -> peft: all files, headers too."""
    read = layouts.read(dso_file)
    assert (read.layout, read.lora, read.config) == ("dso", LORA, layouts.read(base_file).config)
    layouts_write.write(tmp_path / "peft", read, "peft")
    layouts_write.write(tmp_path / "base.safetensors", read, "base")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        run = tmp_path / "run/adapter" / name
        assert (tmp_path / "peft" / name).read_bytes() == run.read_bytes()
    assert (tmp_path / "base.safetensors").read_bytes() == base_file.read_bytes()
    base = layouts.read(tmp_path / "base.safetensors")
    again = layouts.with_base(layouts.read(tmp_path / "peft"), base)
    layouts_write.write(tmp_path / "again.safetensors", again, "dso")
    assert (tmp_path / "again.safetensors").read_bytes() == dso_file.read_bytes()


def test_types_are_those_of_the_release(dso_file):
    tensors = files.read(dso_file).tensors
    half = {name for name, value in tensors.items() if value.dtype == np.float16}
    assert {value.dtype for value in tensors.values()} == {np.dtype("f2"), np.dtype("f4")}
    assert "base_model.model.blocks.1.cross_attn.to_kv.base_layer.weight" in half
    assert "base_model.model.blocks.1.mlp.mlp.2.bias" in half
    kept = ("pos_emb", "norm", "input_layer", "out_layer", "t_embedder", "lora_")
    assert not [name for name in half if any(word in name for word in kept)]


def test_provenance_is_in_the_header(dso_file, base_file, adapted, tmp_path):
    layouts_write.write(tmp_path / "merged.safetensors", adapted, "merged")
    for layout, path in (("dso", dso_file), ("merged", tmp_path / "merged.safetensors")):
        assert files.read(path).metadata == {
            "format": "pt",
            "layout": layout,
            "rank": "3",
            "alpha": "5.0",
            "targets": "to_kv,to_out,to_q,to_qkv",
            "base_sha256": layouts.sha256(base_file),
            "dso_jax_version": dso_jax.__version__,
            "objective": "dro",
            "step": "100",
        }
    assert layouts.read(tmp_path / "merged.safetensors").layout == "merged"


def strangers(path, change=None, metadata=None):
    """Rewrites a file as another program would: no header, tensors changed."""
    tensors = {name: np.array(value) for name, value in files.read(path).tensors.items()}
    files.write(path, change(tensors) if change else tensors, metadata)


def test_alpha_of_a_file_that_does_not_state_it(dso_file, caplog):
    strangers(dso_file)
    read = layouts.read(dso_file)
    assert read.lora == dataclasses.replace(LORA, alpha=6.0)  # twice the rank
    assert read.base_sha256 is None
    assert "does not state alpha: 6 is taken, twice the rank" in caplog.text
    assert layouts.read(dso_file, alpha=5.0).lora == LORA


def test_alpha_against_the_header_is_refused(dso_file, base_file, adapted, tmp_path):
    with pytest.raises(WeightError, match="states alpha 5, not 4"):
        layouts.read(tmp_path / "run/adapter", alpha=4.0)
    with pytest.raises(WeightError, match="no adapter, so alpha 4 says nothing"):
        layouts.read(base_file, alpha=4.0)
    with pytest.raises(WeightError, match="states alpha 5, not 6"):
        layouts.read(dso_file, alpha=6.0)
    strangers(dso_file, metadata={"alpha": "much"})
    with pytest.raises(WeightError, match="alpha 'much', no number"):
        layouts.read(dso_file)
    strangers(dso_file, metadata={"alpha": "nan"})
    with pytest.raises(WeightError, match="alpha nan is no use"):
        layouts.read(dso_file)
    strangers(dso_file, metadata={"rank": "4"})
    with pytest.raises(WeightError, match="rank is 3 in one and 4 in the other"):
        layouts.read(dso_file)


def test_another_base_is_refused_by_its_hash_and_by_its_numbers(dso_file, base_file):
    with pytest.raises(WeightError, match="trained on a base with sha256"):
        layouts.read(dso_file, base_sha256=SHA)
    name = "base_model.model.blocks.1.self_attn.to_out.base_layer.weight"

    def nudge(tensors):
        tensors[name][2, 3] += np.float16(0.5)
        return tensors

    strangers(dso_file, nudge)
    with pytest.raises(WeightError) as raised:
        layouts.with_base(layouts.read(dso_file), layouts.read(base_file))
    problems = [(p.kind, p.name) for p in raised.value.problems]
    assert problems == [("value", "blocks.1.self_attn.to_out.weight")]
    assert "differs by up to 0.5" in str(raised.value)


def test_a_base_in_a_wider_type_is_the_same_base(dso_file, base_file):
    strangers(dso_file, lambda tensors: {n: np.float32(t) for n, t in tensors.items()})
    both = layouts.with_base(layouts.read(dso_file), layouts.read(base_file))
    assert both.params["blocks"]["mlp"]["mlp"]["0"]["kernel"].dtype == np.float16


PREFIX = "base_model.model."
TO_Q = f"{PREFIX}blocks.0.cross_attn.to_q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if n != f"{TO_Q}.base_layer.bias"}, "missing +base"),
        (lambda t: {n: v for n, v in t.items() if ".lora_B." not in n}, r"missing .*lora_B\.def"),
        (lambda t: {n: v for n, v in t.items() if "lora_" not in n}, "no linear has a branch"),
        (lambda t: {n: v for n, v in t.items() if "pos_emb" not in n}, "missing +pos_emb"),
        (lambda t: {**t, "extra": np.zeros(2, np.float32)}, r"unexpected +extra \(2,\)"),
        (
            lambda t: {**t, f"{TO_Q}.lora_B.default.weight": np.zeros((20, 4), np.float32)},
            r"shape .* is \(20, 4\), expected \(20, 3\)",
        ),
        (
            lambda t: {**t, f"{PREFIX}pos_emb": t[f"{PREFIX}pos_emb"][:-1]},
            r"26 rows, expected a cube",
        ),
        (
            lambda t: {**t, f"{PREFIX}out_layer.bias": np.zeros(8, np.int64)},
            r"dtype +base_model\.model\.out_layer\.bias is int64",
        ),
        (lambda t: {n.removeprefix(PREFIX): v for n, v in t.items()}, "missing +base_model"),
        (
            lambda t: {n.replace("blocks.1.", "blocks.4000000."): v for n, v in t.items()},
            r"unexpected +base_model\.model\.blocks\.4000000",
        ),
    ],
)
def test_partial_dso_checkpoints_are_refused(dso_file, change, message):
    strangers(dso_file, change)
    with pytest.raises(WeightError, match=message) as raised:
        layouts.read(dso_file)
    assert str(raised.value).startswith(str(dso_file))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensor"),
        ({"a": np.zeros(1), "b.weight": np.zeros(2)}, r"0 of 2 tensors \(a, b.weight, ...\)"),
        ({"module.pos_emb": np.zeros((1, 2))}, "DistributedDataParallel"),
        ({"pos_emb": np.zeros(8, np.float32)}, r"shape +pos_emb is \(8,\), expected 2 axes"),
        ({"input_layer.weight": np.zeros((4, 2))}, "one level"),
        (
            {"blocks.4000000.conv.weight": np.zeros((8, 1, 3, 3, 3), np.float32)},
            "missing +input_layer.weight",
        ),
        (
            {"base_model.model.blocks.0.cross_attn.to_q.lora_A.weight": np.zeros((2, 3))},
            r"give its folder, with adapter_config\.json",
        ),
    ],
)
def test_what_has_no_layout_is_refused(tmp_path, tensors, message):
    files.write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(WeightError, match=message):
        layouts.read(tmp_path / "x.safetensors")


def test_a_file_of_another_model_is_refused_for_a_flow_model(tmp_path):
    files.write(tmp_path / "x.safetensors", random_state("decoder", DECODERS["uneven"]))
    with pytest.raises(WeightError, match="does not fit flow weights"):
        layouts.read(tmp_path / "x.safetensors", flow=FLOW)


def test_folders_that_are_no_adapter_are_refused(tmp_path):
    with pytest.raises(WeightError, match=r"no adapter_config\.json; expected a state dict"):
        layouts.read(tmp_path)
    (tmp_path / "pipeline.json").touch()
    with pytest.raises(WeightError, match="a pipeline folder; name one of its weight files"):
        layouts.read(tmp_path)
    with pytest.raises(WeightError, match="no such file"):
        layouts.read(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("dso", "dso needs an adapter"),
        ("peft", "peft needs an adapter"),
        ("merged", "merged needs an adapter"),
        ("dinov2", "no names in the layout dinov2"),
    ],
)
def test_a_layout_whose_parts_are_missing_is_refused(base_file, tmp_path, layout, message):
    base = layouts.read(base_file)
    with pytest.raises(WeightError, match=message):
        layouts_write.write(tmp_path / "out", base, layout)
    folded = dataclasses.replace(base, layout="merged")
    if layout == "peft":
        with pytest.raises(WeightError, match="cannot be told apart again"):
            layouts_write.write(tmp_path / "out", folded, layout)
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone_needs_its_base(adapted, base_file, tmp_path):
    adapter = layouts.read(tmp_path / "run/adapter")
    for layout in ("base", "dso", "merged"):
        with pytest.raises(WeightError, match=f"{layout} needs the base"):
            layouts_write.write(tmp_path / "out", adapter, layout)
    base = layouts.read(base_file)
    with pytest.raises(WeightError, match="has no adapter to put onto"):
        layouts.with_base(base, base)
    with pytest.raises(WeightError, match="expected the flow model that was adapted"):
        layouts.with_base(adapter, adapted)
