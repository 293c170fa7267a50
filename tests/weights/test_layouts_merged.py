"""An adapter folded into its base: rounded once, and within what the formats allow."""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from dso_jax.models import lora
from tests.models.sizes import FLOWS
from tests.weights.layout_world import LORA, random_adapter, random_state, same_bytes
from weight_port import WeightError, convert, files, layouts, layouts_write, models

SHA = "ab" * 32


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", FLOWS)
def test_merged_is_base_plus_adapter_rounded_once(tmp_path, name, half):
    """Against float64, within a bound that follows from the formats.

    With p significant bits (11 of fp16, 8 of bf16), rounding x to the nearest is off by at most
    2^-p |x| + s/2, s the smallest number above 0. Before that, A B of inner length r is summed in
    fp32, scaled and added: at most (r + 3) 2^-24 (|W| + scale |A||B|), to first order.
    """
    config, settings = FLOWS[name], dataclasses.replace(LORA, alpha=4.5)
    state, adapter = random_state("flow", config), random_adapter(config, settings)
    params = models.from_torch("flow", config, state, place=np.asarray)
    flat = convert.flatten(params) | convert.flatten(adapter)
    both = layouts.Checkpoint("x", "dso", "flow", config, convert.unflatten(flat), settings)
    layouts_write.write(tmp_path / "m.safetensors", both, "merged", base_sha256=SHA, half=half)
    merged = files.read(tmp_path / "m.safetensors").tensors

    assert merged.keys() == state.keys()
    info = ml_dtypes.finfo(half)
    adapted = 0
    for slot in models.slots("flow", config):
        a = flat.get(slot.path.replace("kernel", "lora_A"))
        b = flat.get(slot.path.replace("kernel", "lora_B"))
        for block, tensor in enumerate(slot.names):
            base, found = np.float64(state[tensor]), np.float64(merged[tensor])
            assert merged[tensor].dtype == (half if slot.rule.half else np.float32), tensor
            if a is None or b is None or not slot.path.endswith("kernel"):
                rounded = base.astype(half) if slot.rule.half else base
                np.testing.assert_array_equal(found, np.float64(rounded))
                continue
            adapted += 1
            low, high = (leaf[block].T.astype(np.float64) for leaf in (a, b))
            exact = base + settings.scale * high @ low
            sums = np.abs(base) + settings.scale * np.abs(high) @ np.abs(low)
            slack = (settings.rank + 3) * 2.0**-24 * sums
            bound = float(info.eps) / 2 * (np.abs(exact) + slack)
            bound += float(info.smallest_subnormal) / 2 + slack
            assert np.all(np.abs(found - exact) <= bound), tensor
            assert np.abs(exact - base).max() > bound.max()  # the adapter is larger than the bound
    assert adapted == 5 * config.num_blocks


def test_an_adapter_of_zeros_leaves_the_base_to_the_bit(adapted, base_file, tmp_path):
    zeros = jax.tree.map(np.zeros_like, random_adapter())
    params = layouts.read(base_file).params
    both = dataclasses.replace(adapted, params=lora.with_adapter(params, zeros))
    layouts_write.write(tmp_path / "m.safetensors", both, "merged")
    same_bytes(files.read(tmp_path / "m.safetensors").tensors, dict(files.read(base_file).tensors))


def test_a_merge_that_overflows_names_the_tensor(adapted, tmp_path):
    flat = convert.flatten(adapted.params)
    flat["blocks/cross_attn/to_kv/lora_B"] = 1e6 * flat["blocks/cross_attn/to_kv/lora_B"]
    both = dataclasses.replace(adapted, params=convert.unflatten(flat))
    with pytest.raises(WeightError, match=r"blocks\.0\.cross_attn\.to_kv\.weight .* overflow"):
        layouts_write.write(tmp_path / "m.safetensors", both, "merged")
    assert not (tmp_path / "m.safetensors").exists()
