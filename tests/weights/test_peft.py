"""PEFT adapter folders: our names and numbers, real `peft` on both sides, and refusals."""

from __future__ import annotations

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dso_jax
from dso_jax.models import FlowConfig, LoRAConfig, apply_flow, init_flow, lora
from tests.models.comparison import FAST_COMPILE, FORWARD, difference
from tests.models.sizes import FLOWS, arguments
from weight_port import WeightError, files, from_torch, read_peft_adapter, to_torch
from weight_port import write_peft_adapter as write
from weight_port.convert import flatten, unflatten
from weight_port.peft import WEIGHTS
from weight_port.peft_config import CONFIG

FLOW = FLOWS["patch1"]
LORA = LoRAConfig(rank=3, alpha=5.0)
SHA = "ab" * 32


def random_adapter(config=FLOW, settings=LORA, seed=0):
    shapes = jax.eval_shape(lambda: init_flow(config, jax.random.key(0), settings))
    rng = np.random.default_rng(seed)
    flat = flatten(lora.adapter_leaves(shapes))
    # Of the size of trained branches: larger ones would make the model itself ill-conditioned.
    return unflatten(
        {
            path: jnp.float32(rng.normal(size=s.shape) * s.shape[1] ** -0.5)
            for path, s in flat.items()
        }
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "adapter", random_adapter(), LORA, base_sha256=SHA, metadata={"step": "7"})
    return tmp_path / "adapter"


def same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], strict=True)


@pytest.mark.parametrize("name", FLOWS)
def test_round_trip(tmp_path, name):
    adapter = random_adapter(FLOWS[name])
    write(tmp_path, adapter, LORA, base_sha256=SHA)
    for flow in (None, FLOWS[name]):
        read, settings = read_peft_adapter(tmp_path, flow=flow, base_sha256=SHA)
        same(read, adapter)
        assert settings == LoRAConfig(3, 5.0, tuple(sorted(LORA.targets)))


def test_writing_what_was_read_gives_the_same_bytes(folder, tmp_path):
    adapter, settings = read_peft_adapter(folder)
    write(tmp_path / "again", adapter, settings, base_sha256=SHA, metadata={"step": "7"})
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_whole_tree_and_trainable_part_give_the_same_file(folder, tmp_path):
    base = jax.tree.map(
        lambda s: jnp.zeros(s.shape), jax.eval_shape(lambda: init_flow(FLOW, jax.random.key(0)))
    )
    params = lora.with_adapter(base, random_adapter())
    trainable, _ = lora.partition(params, lora.trainable_mask(params, ["lora"]))
    for tree in (params, trainable):
        write(tmp_path / "other", tree, LORA, base_sha256=SHA, metadata={"step": "7"})
        assert (tmp_path / "other" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_names_shapes_and_values_are_pefts(folder):
    tensors = files.read(folder / WEIGHTS).tensors
    assert len(tensors) == FLOW.num_blocks * 5 * 2
    leaf = random_adapter()["blocks"]["cross_attn"]["to_kv"]
    prefix = "base_model.model.blocks.1.cross_attn.to_kv"
    a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
    assert (a.shape, b.shape) == ((3, 12), (40, 3))  # (rank, in), (out, rank)
    np.testing.assert_array_equal(a, leaf["lora_A"][1].T)
    np.testing.assert_array_equal(b, leaf["lora_B"][1].T)
    assert not any(".default" in name for name in tensors)


def test_published_size_has_the_published_adapter():
    from weight_port.convert import plan
    from weight_port.peft import RULES

    shapes = jax.eval_shape(lambda: init_flow(FlowConfig(), jax.random.key(0), LoRAConfig()))
    names = [n for slot in plan(RULES, lora.adapter_leaves(shapes)) for n in slot.names]
    assert len(set(names)) == len(names) == 240


def test_settings_and_provenance(folder):
    config = json.loads((folder / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 5, "none")
    assert config["target_modules"] == ["to_kv", "to_out", "to_q", "to_qkv"]
    assert files.read(folder / WEIGHTS).metadata == {
        "format": "pt",
        "rank": "3",
        "alpha": "5.0",
        "targets": "to_kv,to_out,to_q,to_qkv",
        "base_sha256": SHA,
        "dso_jax_version": dso_jax.__version__,
        "step": "7",
    }


def test_reader_states_what_it_matched(folder, caplog):
    with caplog.at_level(logging.INFO, "weight_port"):
        read_peft_adapter(folder, flow=FLOW)
    assert "matched 20 of 20 tensors" in caplog.text


def test_subset_of_targets(tmp_path):
    settings = LoRAConfig(2, 2.0, ("to_q",))
    adapter = random_adapter(settings=settings)
    write(tmp_path, adapter, settings, base_sha256=SHA)
    read, found = read_peft_adapter(tmp_path, flow=FLOW)
    same(read, adapter)
    assert found == settings


def edit(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def rewrite(folder, change):
    tensors, metadata = files.read(folder / WEIGHTS)
    tensors = {name: value.copy() for name, value in tensors.items()}
    files.write(folder / WEIGHTS, change(tensors) or tensors, metadata)


FIRST = "base_model.model.blocks.0.cross_attn.to_kv.lora_A.weight"


def without(name):
    return lambda tensors: {n: v for n, v in tensors.items() if n != name}


def renamed(function):
    return lambda tensors: {function(n): v for n, v in tensors.items()}


@pytest.mark.parametrize("flow", [None, FLOW], ids=["alone", "with_model"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(FIRST), rf"missing\s+{FIRST}"),
        (lambda t: {**t, "extra": np.ones((2, 2), np.float32)}, r"unexpected\s+extra \(2, 2\)"),
        (
            lambda t: {**t, FIRST: t[FIRST][:2]},
            rf"shape\s+{FIRST} is \(2, 12\), expected \(3, 12\)",
        ),
        (lambda t: {**t, FIRST: t[FIRST].astype(np.int8)}, rf"dtype\s+{FIRST} is int8"),
        (
            renamed(lambda n: n.replace("lora_A.", "lora_A.default.")),
            "model in memory|one of lora_A",
        ),
        (
            renamed(lambda n: n.replace(".weight", ".default.weight")),
            r"0 of 20 matched[^$]*in memory",
        ),
        (renamed(lambda n: n.removeprefix("base_model.model.")), "0 of 20 matched"),
        (renamed(lambda n: n.replace("lora", "lokr")), "0 of 20 matched"),
        (lambda t: {n: v for n, v in t.items() if "to_q." not in n}, "lists the target to_q"),
        (lambda t: {n: v for n, v in t.items() if "lora_B" not in n}, "lora_B"),
    ],
)
def test_partial_matches_are_refused(folder, flow, change, message):
    rewrite(folder, change)
    with pytest.raises(WeightError, match=message) as raised:
        read_peft_adapter(folder, flow=flow)
    assert str(folder) in str(raised.value)


def test_no_tensor_at_all(folder):
    files.write(folder / WEIGHTS, {})
    with pytest.raises(WeightError, match="holds no tensor"):
        read_peft_adapter(folder)


def test_adapter_of_another_model_is_refused(tmp_path):
    deeper = FlowConfig(**{**FLOW.__dict__, "num_blocks": FLOW.num_blocks + 1})
    write(tmp_path, random_adapter(deeper), LORA, base_sha256=SHA)
    with pytest.raises(WeightError, match=r"unexpected\s+base_model\.model\.blocks\.2\."):
        read_peft_adapter(tmp_path, flow=FLOW)


def test_gap_between_blocks_is_refused(folder):
    rewrite(folder, renamed(lambda n: n.replace("blocks.1.", "blocks.2.")))
    with pytest.raises(WeightError, match=r"missing\s+base_model\.model\.blocks\.1\."):
        read_peft_adapter(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", "peft_type is 'LOHA', expected 'LORA'"),
        ("r", "3", "r is '3'"),
        ("r", 0, "r is 0"),
        ("r", 2, "do not belong together: rank is 2 in one and 3 in the other"),
        ("lora_alpha", None, "lora_alpha is None"),
        ("lora_alpha", 10**400, "lora_alpha is 1000.*, expected a number"),
        ("lora_alpha", float("nan"), "lora_alpha is nan, expected a number"),
        ("lora_alpha", 6, "do not belong together: alpha is 6.0 in one and 5.0 in the other"),
        ("target_modules", None, "target_modules is None"),
        ("bias", "all", "bias='all' is not supported"),
        ("use_dora", True, "use_dora=True is not supported"),
        ("use_rslora", True, "use_rslora=True is not supported"),
        ("rank_pattern", {"to_q": 8}, "rank_pattern=.* is not supported"),
        ("init_lora_weights", "pissa", "init_lora_weights='pissa' is not supported"),
        ("something_new", {"a": 1}, "something_new=.* is not supported"),
    ],
)
def test_settings_that_make_another_function_are_refused(folder, key, value, message):
    edit(folder / CONFIG, lambda config: config.update({key: value}))
    with pytest.raises(WeightError, match=message):
        read_peft_adapter(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not JSON"), ("{", "not JSON"), ("[1]", "expected an object"), ("\xff", "not JSON")],
)
def test_damaged_settings(folder, text, message):
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightError, match=rf"{CONFIG}: {message}"):
        read_peft_adapter(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightError, match=f"{name}: no such file"):
        read_peft_adapter(folder)


def test_truncated_weights(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightError, match=f"{WEIGHTS}: not a whole safetensors file"):
        read_peft_adapter(folder)


def test_another_base_is_refused(folder):
    with pytest.raises(WeightError, match=f"trained on a base with sha256 {SHA}"):
        read_peft_adapter(folder, base_sha256="cd" * 32)


def test_unknown_base_is_said(folder, caplog):
    tensors, _ = files.read(folder / WEIGHTS)
    files.write(folder / WEIGHTS, tensors)
    read_peft_adapter(folder, base_sha256=SHA)
    assert "does not say which base" in caplog.text


@pytest.mark.parametrize(
    ("params", "settings", "message"),
    [
        (lambda: {"out_layer": {"bias": jnp.zeros(1)}}, LORA, "hold no LoRA leaves"),
        (random_adapter, LoRAConfig(4, 5.0), "has rank 3, expected 4"),
        (random_adapter, LoRAConfig(3, 5.0, ("to_q",)), "is no target"),
        (random_adapter, LoRAConfig(3, 5.0, (*LORA.targets, "to_v")), "missing    to_v"),
    ],
)
def test_writer_refuses_what_does_not_fit(tmp_path, params, settings, message):
    with pytest.raises(WeightError, match=message):
        write(tmp_path / "adapter", params(), settings, base_sha256=SHA)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_half_a_branch(tmp_path):
    adapter = random_adapter()
    del adapter["blocks"]["self_attn"]["to_out"]["lora_B"]
    with pytest.raises(WeightError, match="missing    blocks/self_attn/to_out/lora_B"):
        write(tmp_path / "adapter", adapter, LORA, base_sha256=SHA)


def test_writer_keeps_its_own_metadata(tmp_path):
    with pytest.raises(WeightError, match="rank is set by the writer"):
        write(tmp_path / "x", random_adapter(), LORA, base_sha256=SHA, metadata={"rank": "9"})
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_both_files(folder):
    settings = LoRAConfig(2, 9.5, ("to_q", "to_kv"))
    adapter = random_adapter(settings=settings, seed=5)
    write(folder, adapter, settings, base_sha256=SHA)
    read, found = read_peft_adapter(folder)
    same(read, adapter)
    assert found.scale == 4.75
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, CONFIG])


@pytest.fixture
def torch_flow():
    """A torch model with random weights, and a batch."""
    pytest.importorskip("torch")
    from tests.reference.torch_flow import SparseStructureFlowModel
    from tests.reference.torch_tools import randomize

    rng = np.random.default_rng(1)
    x, cond = rng.normal(size=(2, 8, 3, 3, 3)), rng.normal(size=(2, 5, 12))
    batch = [np.asarray(a, np.float32) for a in (x, [0.125, 0.75], cond)]
    return randomize(SparseStructureFlowModel(**arguments(FLOW)), 0), batch


def run_torch(model, batch):
    import torch

    x, t, cond = map(torch.from_numpy, batch)
    with torch.no_grad():
        return model(x, t * 1000, cond).numpy()


forward = jax.jit(
    apply_flow, static_argnums=0, static_argnames="lora", compiler_options=FAST_COMPILE
)


def run_ours(params, batch, settings=None):
    return forward(FLOW, params, *map(jnp.asarray, batch), lora=settings)


def test_peft_loads_ours_and_computes_the_same(folder, torch_flow):
    peft = pytest.importorskip("peft")
    from tests.reference.torch_tools import arrays

    model, batch = torch_flow
    base = from_torch("flow", FLOW, arrays(model))
    params = lora.with_adapter(base, random_adapter())
    ours = run_ours(params, batch, LORA)
    assert difference(ours, run_torch(model, batch)) > 0.01

    loaded = peft.PeftModel.from_pretrained(model, folder)
    assert difference(ours, run_torch(loaded, batch)) <= FORWARD

    merged = to_torch("flow", FLOW, lora.merge(params, LORA))
    theirs = arrays(loaded.merge_and_unload())
    assert theirs.keys() == merged.keys()
    for name in theirs:
        np.testing.assert_allclose(merged[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_we_load_what_peft_saves(tmp_path, torch_flow):
    peft = pytest.importorskip("peft")
    from tests.reference.torch_tools import arrays, randomize

    model, batch = torch_flow
    settings = peft.LoraConfig(r=4, lora_alpha=7, target_modules=["to_q", "to_kv", "to_qkv"])
    wrapped = peft.get_peft_model(model, settings)
    randomize(wrapped, 3)
    weights = {n.replace(".base_layer", ""): v for n, v in arrays(model).items() if "lora" not in n}
    base = from_torch("flow", FLOW, weights)
    wrapped.save_pretrained(tmp_path)
    adapter, found = read_peft_adapter(tmp_path, flow=FLOW)
    assert (found.rank, found.alpha, found.targets) == (4, 7.0, ("to_kv", "to_q", "to_qkv"))
    ours = run_ours(lora.with_adapter(base, adapter), batch, found)
    assert difference(ours, run_torch(wrapped, batch)) <= FORWARD
