"""Pipeline folders: what is written is read back, and what is wrong is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dso_jax import pretrained, toybox
from dso_jax.errors import UsageError
from dso_jax.models import DecoderConfig, FlowConfig, init_decoder, init_flow
from dso_jax.pretrained import pipeline
from dso_jax.sampler import SamplerConfig
from weight_port import files

FLOW = FlowConfig(resolution=2, model_channels=12, cond_channels=6, num_blocks=2, num_heads=3)
DECODER = DecoderConfig(channels=(4, 2), num_res_blocks=1, num_res_blocks_middle=1)
SAMPLER = SamplerConfig(steps=9, rescale_t=2.0, guidance_weight=3.5, guidance_interval=(0.25, 1.0))
MAX_EMBEDDED_BYTES = 4 * 2**20


@pytest.fixture
def folder(tmp_path):
    key = jax.random.key(0)
    models = {
        pretrained.FLOW: (FLOW, init_flow(FLOW, key)),
        pretrained.DECODER: (DECODER, init_decoder(DECODER, key)),
    }
    pretrained.save(tmp_path, models, SAMPLER, {"seed": "0"})
    return tmp_path


def edit(path, change):
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_a_saved_folder_loads_to_half_precision(folder):
    base = pretrained.load(str(folder))
    assert (base.flow_config, base.decoder_config, base.sampler) == (FLOW, DECODER, SAMPLER)
    expected = jax.tree.map(
        lambda x: np.asarray(x, np.float16).astype(np.float32),
        init_flow(FLOW, jax.random.key(0)),
    )
    jax.tree.map(np.testing.assert_array_equal, base.flow_params, expected)
    assert len(base.sha256) == 64


def test_published_configurations_are_understood(folder):
    """Elastic names, runtime arguments, and heads given by their width."""

    def publish(contents):
        contents["name"] = "Elastic" + contents["name"]
        contents["args"] |= {"use_fp16": True, "num_heads": None, "num_head_channels": 4}

    edit(folder / "ckpts" / "flow.json", publish)
    assert pretrained.load(str(folder)).flow_config == FLOW


def test_what_a_description_leaves_out_is_as_upstream_has_it(tmp_path):
    """Without norms of queries and keys, patches of 2: the defaults of upstream's class."""
    config = FlowConfig(
        resolution=4,
        model_channels=12,
        cond_channels=6,
        num_blocks=1,
        num_heads=3,
        patch_size=2,
        qk_rms_norm=False,
    )
    models = {pretrained.FLOW: (config, init_flow(config, jax.random.key(0)))}
    pretrained.save(tmp_path, models, SAMPLER, {})
    optional = ("mlp_ratio", "patch_size", "pe_mode", "share_mod")

    def leave_out(contents):
        for key in (*optional, "qk_rms_norm", "qk_rms_norm_cross"):
            del contents["args"][key]

    edit(tmp_path / "ckpts" / "flow.json", leave_out)
    assert pretrained.load_model(tmp_path, pretrained.FLOW)[0] == config


def test_a_wrong_name_is_told_what_is_expected():
    with pytest.raises(UsageError, match=r"nowhere/pipeline\.json.*toybox.*a TRELLIS folder"):
        pretrained.load("nowhere")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("pipeline.json", lambda c: c["args"]["models"].clear(), "sparse_structure_flow_model"),
        (
            "pipeline.json",
            lambda c: c["args"]["sparse_structure_sampler"]["params"].pop("steps"),
            "no 'steps'",
        ),
        ("ckpts/flow.json", lambda c: c.update(name="SLatFlowModel"), "is a SLatFlowModel"),
        ("ckpts/flow.json", lambda c: c["args"].update(colour=3), "colour"),
    ],
)
def test_faults_name_the_file_and_the_key(folder, file, change, message):
    edit(folder / file, change)
    with pytest.raises(UsageError, match=message) as error:
        pretrained.load(str(folder))
    assert file.rsplit("/", 1)[-1] in str(error.value)


UNUSABLE = [None, True, 0, -1, 10**400, "x", [1], {"a": 1}]


@pytest.mark.parametrize("value", UNUSABLE, ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("key", ["resolution", "in_channels", "num_blocks", "mlp_ratio"])
def test_a_size_that_is_none_is_named(folder, key, value):
    """Before anything is made of that size."""
    edit(folder / "ckpts" / "flow.json", lambda c: c["args"].update({key: value}))
    with pytest.raises(UsageError, match=r"ckpts/flow\.json: "):
        pipeline.model_config(folder / "ckpts" / "flow.json", pretrained.FLOW)


def test_weights_of_another_size_are_reported_by_tensor(folder):
    edit(folder / "ckpts" / "flow.json", lambda c: c["args"].update(num_blocks=3))
    with pytest.raises(UsageError, match=r"blocks\.2\."):
        pretrained.load(str(folder))


def test_a_weight_file_that_was_cut_short_is_named(folder):
    path = folder / "ckpts" / "flow.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"flow\.safetensors"):
        pretrained.load(str(folder))


def test_a_file_that_is_not_json_is_named(folder):
    (folder / "pipeline.json").write_text("{")
    with pytest.raises(UsageError, match=r"pipeline\.json: not JSON"):
        pretrained.load(str(folder))


def test_the_embedded_generator_is_small_and_fits_its_world():
    base = pretrained.load("toybox")
    files = sorted(pretrained.EMBEDDED["toybox"].glob("ckpts/*.safetensors"))
    assert len(files) == 3
    assert all(path.stat().st_size <= MAX_EMBEDDED_BYTES for path in files)
    assert base.flow_config.num_tokens == 64
    assert base.flow_config.cond_channels == toybox.COND_CHANNELS


def test_types_and_places_are_as_asked(folder):
    """Blocks in the asked type, norms and outer layers in fp32, shards on all devices."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def sharding(shape):
        last = shape[-1] % 4 == 0
        return NamedSharding(mesh, P(*[None] * (len(shape) - 1), "data") if last else P())

    plain = pretrained.load(str(folder)).flow_params
    base = pretrained.load(str(folder), dtype=jnp.bfloat16, sharding=sharding)
    blocks = base.flow_params["blocks"]
    kernel = blocks["self_attn"]["to_qkv"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding == sharding(kernel.shape)
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 12, 9)}
    assert blocks["norm2"]["scale"].dtype == base.flow_params["out_layer"]["kernel"].dtype == "f4"
    assert all(leaf.dtype == "f4" for leaf in jax.tree.leaves(base.decoder_params))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), base.flow_params, plain
    )


def test_weights_that_are_not_finite_are_named(folder):
    path = folder / "ckpts" / "flow.safetensors"
    tensors = {name: value.copy() for name, value in files.read(path).tensors.items()}
    tensors["blocks.1.mlp.mlp.2.bias"][3] = np.nan
    tensors["input_layer.weight"][0, 0] = np.inf
    files.write(path, tensors)
    with pytest.raises(UsageError, match="2 value") as error:
        pretrained.load(str(folder))
    for name in (str(path), "blocks.1.mlp.mlp.2.bias", "input_layer.weight"):
        assert name in str(error.value)
    assert "blocks.0.mlp" not in str(error.value)
