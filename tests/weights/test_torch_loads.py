"""What we write is what torch loads: PEFT, DSO's way, and a pipeline folder as TRELLIS reads it."""

from __future__ import annotations

import json
import re
import sys
import types
from typing import Any

import numpy as np
import pytest

from dso_jax.cli import exporting, main
from dso_jax.cli.verify import velocity
from dso_jax.models import FlowConfig, LoRAConfig, lora
from tests.models.comparison import FORWARD, difference
from tests.models.sizes import FLOWS, arguments
from tests.weights.layout_world import (
    CLASSES,
    FLOW,
    LORA,
    STEM,
    random_adapter,
    random_state,
    write_pipeline,
    write_run,
)
from weight_port import dso, files, layouts, layouts_write, models

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def run_torch(model, config=FLOW) -> np.ndarray:
    """The forward that `verify.velocity` does."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, config.in_channels, *(config.resolution,) * 3))
    cond = rng.normal(size=(1, exporting.verify.CONDITION_TOKENS, config.cond_channels))
    batch = (torch.from_numpy(a.astype(np.float32)) for a in (x, cond))
    noise, condition = batch
    with torch.no_grad():
        return model(noise, torch.tensor([500.0]), condition).numpy()


def make_flow(config: FlowConfig = FLOW):
    from tests.reference.torch_flow import SparseStructureFlowModel

    return SparseStructureFlowModel(**arguments(config))


def both(config: FlowConfig = FLOW, settings: LoRAConfig = LORA) -> layouts.Checkpoint:
    base = models.from_torch("flow", config, random_state("flow", config), place=np.asarray)
    params = lora.with_adapter(base, random_adapter(config, settings))
    return layouts.Checkpoint("x", "dso", "flow", config, params, settings, "ab" * 32)


def wrapped(settings: LoRAConfig, config: FlowConfig = FLOW):
    """The reference as DSO's example.py wraps TRELLIS's model."""
    return peft.get_peft_model(
        make_flow(config),
        peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules=list(settings.targets),
        ),
    )


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("targets", [LORA.targets, ("to_kv",)], ids=["all", "to_kv"])
def test_names_are_those_of_a_torch_peft_model(name, targets):
    settings = LoRAConfig(2, 3.0, targets)
    with torch.device("meta"):
        state = wrapped(settings, FLOWS[name]).state_dict()
    slots = dso.slots(FLOWS[name], settings)
    ours = {tensor: slot.torch_shape for slot in slots for tensor in slot.names}
    assert ours == {tensor: tuple(value.shape) for tensor, value in state.items()}


def test_dsos_example_loads_our_checkpoint_strictly(tmp_path):
    from safetensors.torch import load_file

    checkpoint = both()
    layouts_write.write(tmp_path / "dso.safetensors", checkpoint, "dso")
    model = wrapped(LORA)
    assert model.load_state_dict(load_file(tmp_path / "dso.safetensors"), strict=True)
    ours = velocity(FLOW, checkpoint.params, LORA)
    assert difference(run_torch(model), ours) <= FORWARD
    assert (
        difference(run_torch(model.disable_adapter() and model.get_base_model()), ours) <= FORWARD
    )


def test_we_read_what_a_torch_peft_model_saves(tmp_path):
    """A checkpoint as DSO's training leaves it: fp16 base, fp32 adapter, no header."""
    from safetensors.torch import save_file

    from tests.reference.torch_tools import randomize

    model = wrapped(LORA)
    randomize(model, 3)
    model.get_base_model().cast_torso(torch.float16)
    state = {n: v.float() if "lora_" in n else v for n, v in model.state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    read = layouts.read(tmp_path / "theirs.safetensors", flow=FLOW, alpha=LORA.alpha)
    assert read.params["blocks"]["self_attn"]["to_qkv"]["kernel"].dtype == np.float16
    layouts_write.write(tmp_path / "ours.safetensors", read, "dso")
    theirs, ours = (files.read(tmp_path / f"{n}.safetensors").tensors for n in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in theirs)
    model.get_base_model().cast_torso(torch.float32)
    assert difference(velocity(FLOW, read.params, LORA), run_torch(model)) <= FORWARD


def test_a_merged_linear_is_the_unmerged_one_to_rounding(tmp_path):
    """Layer by layer in torch, in float64, with the bound that fp16 allows each output.

    y' - y = x (W' - (W + scale B A))^T, and each weight is off by at most 2^-11 |W'| + 2^-25
    (half a unit of fp16 at W', or half of its smallest number) and, from the fp32 sum before,
    (rank + 3) 2^-24 (|W| + scale |B||A|).
    """
    checkpoint = both()
    layouts_write.write(tmp_path / "m.safetensors", checkpoint, "merged", base_sha256="")
    layouts_write.write(tmp_path / "dso.safetensors", checkpoint, "dso")
    merged = files.read(tmp_path / "m.safetensors").tensors
    model = wrapped(LORA)
    state = files.read(tmp_path / "dso.safetensors").tensors
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    model.double()
    count = 0
    for name, layer in model.named_modules():
        if not isinstance(layer, peft.tuners.lora.Linear):
            continue
        key = name.removeprefix("base_model.model.")
        weight = torch.tensor(merged[f"{key}.weight"].astype(np.float64))
        x = torch.randn((5, weight.shape[1]), generator=torch.Generator().manual_seed(count))
        x = x.double()
        with torch.no_grad():
            expected = layer(x)
            low, high = (part["default"].weight.abs() for part in (layer.lora_A, layer.lora_B))
            sums = layer.base_layer.weight.abs() + LORA.scale * high @ low
        off = weight.abs() * 2.0**-11 + 2.0**-25 + (LORA.rank + 3) * 2.0**-24 * sums
        bias = torch.tensor(merged[f"{key}.bias"].astype(np.float64))
        bound = x.abs() @ off.T
        assert ((x @ weight.T + bias - expected).abs() <= bound).all(), name
        count += 1
    assert count == 5 * FLOW.num_blocks


@pytest.fixture
def trellis(monkeypatch):
    """`trellis.pipelines`, reading a folder as upstream does, with our reference classes."""
    from safetensors.torch import load_file

    from tests.reference import torch_flow, torch_structure

    def load(stem):
        with open(f"{stem}.json") as file:
            description = json.load(file)
        given = description["args"]
        given.pop("use_fp16")
        name = description["name"].removeprefix("Elastic")
        if width := given.pop("num_head_channels", None):
            given["num_heads"] = given["num_heads"] or given["model_channels"] // width
        given.pop("norm_type", None)
        module = torch_flow if name == CLASSES["flow"] else torch_structure
        model = getattr(module, name)(**given)
        model.load_state_dict(load_file(f"{stem}.safetensors"), strict=True)
        return model

    class TrellisImageTo3DPipeline:
        def __init__(self, models):
            self.models = models

        @classmethod
        def from_pretrained(cls, path):
            with open(f"{path}/pipeline.json") as file:
                stems = json.load(file)["args"]["models"]
            stems.pop("slat_decoder_mesh")  # a stage that the reference does not have
            return cls({role: load(f"{path}/{stem}") for role, stem in stems.items()})

    for name in ("trellis", "trellis.pipelines"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = sys.modules["trellis.pipelines"]
    monkeypatch.setattr(module, "TrellisImageTo3DPipeline", TrellisImageTo3DPipeline, raising=False)
    return TrellisImageTo3DPipeline


@pytest.mark.parametrize("layout", ["dso", "peft", "merged"])
def test_the_lines_in_the_readme_load_what_was_exported(tmp_path, trellis, layout):
    """The code of each README, run as it stands, beside base + adapter in this process."""
    base = write_pipeline(tmp_path / "base")
    run = write_run(tmp_path / "run", layouts.sha256(base / f"{STEM}.safetensors"))
    out = tmp_path / "out"
    words = ["export", str(run), "--layout", layout, "--base", str(base), "--out", str(out)]
    assert main.main(words) == 0
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert code is not None
    scope: dict[str, Any] = {}
    if layout != "merged":
        scope["pipeline"] = trellis.from_pretrained(str(base))
    exec(code[1].replace("THIS_FOLDER", str(out)), scope)
    flow = scope["pipeline"].models["sparse_structure_flow_model"]

    loaded = exporting.load_base(str(base))
    params = lora.with_adapter(loaded.params, random_adapter(seed=2))
    if layout == "merged":
        params, settings = exporting.load_base(str(out)).params, None
    else:
        settings = LORA
    assert difference(run_torch(flow), velocity(FLOW, params, settings)) <= FORWARD
