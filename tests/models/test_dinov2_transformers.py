"""Our DINOv2 beside the one most people run: files and features of `transformers`."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax.models import apply_dinov2
from tests.models.comparison import FORWARD, difference
from weight_port import dinov2

torch = pytest.importorskip("torch")

from tests.reference.torch_tools import randomize  # noqa: E402


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_files_and_features_are_those_of_transformers(tmp_path, registers, swiglu):
    with warnings.catch_warnings():  # of its own dependencies
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"image_size": 56, "patch_size": 14, "mlp_ratio": 2, "use_swiglu_ffn": swiglu}
    if registers:
        settings = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersModel(settings)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    randomize(model.eval(), seed=registers)
    model.save_pretrained(tmp_path)
    config, params = dinov2.read(tmp_path)
    assert (config.num_registers, config.ffn) == (registers, "swiglu" if swiglu else "mlp")
    images = np.random.default_rng(0).normal(size=(2, 3, 56, 70)).astype(np.float32)
    with torch.inference_mode():
        found = model(torch.from_numpy(images), output_hidden_states=True)
    prenorm = apply_dinov2(config, params, jnp.asarray(images))
    normed = apply_dinov2(config, params, jnp.asarray(images), normed=True)
    assert difference(prenorm, found.hidden_states[-1].numpy()) <= FORWARD
    assert difference(normed, found.last_hidden_state.numpy()) <= FORWARD
