"""Names, shapes and counts of the published models, from shapes alone: nothing is allocated.

After an intended change: `python -m tests.models.test_parameter_tree` rewrites the golden files.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import pytest

from dso_jax.models import (
    DINOV2_SIZES,
    FLOW_SIZES,
    DecoderConfig,
    EncoderConfig,
    FlowConfig,
    LoRAConfig,
    init_decoder,
    init_dinov2,
    init_encoder,
    init_flow,
)
from dso_jax.models.lora import adapter_leaves, strip
from weight_port.convert import flatten

GOLDEN = Path(__file__).parent / "golden"
KEY = jax.random.key(0)
TREES = {
    "flow_lora64": jax.eval_shape(lambda: init_flow(FlowConfig(), KEY, LoRAConfig())),
    "decoder": jax.eval_shape(lambda: init_decoder(DecoderConfig(), KEY)),
    "encoder": jax.eval_shape(lambda: init_encoder(EncoderConfig(), KEY)),
    "dinov2_vitl14_reg": jax.eval_shape(
        lambda: init_dinov2(DINOV2_SIZES["dinov2_vitl14_reg"], KEY)
    ),
    "dinov2_vitg14": jax.eval_shape(lambda: init_dinov2(DINOV2_SIZES["dinov2_vitg14"], KEY)),
}


def listing(tree) -> str:
    return "".join(f"{path} {leaf.shape}\n" for path, leaf in sorted(flatten(tree).items()))


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", TREES)
def test_names_and_shapes(name):
    assert listing(TREES[name]) == (GOLDEN / f"{name}.txt").read_text()


def test_counts_are_the_published_ones():
    flow = strip(TREES["flow_lora64"])
    table = flow.pop("pos_emb")
    assert table.shape == (4096, 1024)
    assert count(flow) == 555_543_560
    assert count(TREES["decoder"]) == 73_671_201
    assert count(TREES["encoder"]) == 59_298_192


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("base", 156_726_536), ("large", 542_960_648), ("xlarge", 975_440_648)],
)
def test_counts_of_the_text_models_are_upstreams(size, parameters):
    config = FLOW_SIZES[f"TRELLIS-text-{size}"]
    flow = jax.eval_shape(lambda: init_flow(config, KEY))
    assert flow.pop("pos_emb").shape == (4096, config.model_channels)
    assert count(flow) == parameters


def test_adapter_is_the_published_one():
    adapter = adapter_leaves(TREES["flow_lora64"])
    branches = [leaf for path, leaf in flatten(adapter).items() if path.endswith("lora_A")]
    assert sum(leaf.shape[0] for leaf in branches) == 120
    assert count(adapter) == 20_447_232


def test_masters_are_fp32():
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(TREES))


if __name__ == "__main__":
    for name, tree in TREES.items():
        (GOLDEN / f"{name}.txt").write_text(listing(tree))
