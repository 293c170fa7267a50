"""A small generator as TRELLIS publishes one, with an adapter, for the tests of layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from dso_jax.cli import main
from dso_jax.models import DecoderConfig, EncoderConfig, FlowConfig, LoRAConfig
from tests.models.sizes import DECODERS, ENCODERS, FLOWS
from weight_port import convert, dso, files, models, write_peft_adapter

FLOW = FLOWS["patch1"]
LORA = LoRAConfig(rank=3, alpha=5.0, targets=("to_kv", "to_out", "to_q", "to_qkv"))
STEM = "ckpts/ss_flow_img_dit_L_16l8_fp16"
STEMS = {
    "sparse_structure_flow_model": STEM,
    "sparse_structure_decoder": "ckpts/ss_dec_conv3d_16l8_fp16",
    "sparse_structure_encoder": "ckpts/ss_enc_conv3d_16l8_fp16",
    "slat_decoder_mesh": "ckpts/slat_dec_mesh",  # a model that nothing here can read
}
CLASSES = {
    "flow": "SparseStructureFlowModel",
    "decoder": "ElasticSparseStructureDecoder",
    "encoder": "SparseStructureEncoder",
}


def random_array(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of the size of trained weights: larger ones would make the model ill-conditioned."""
    return (rng.normal(size=shape) * shape[-1] ** -0.5).astype(np.float32)


def random_state(kind, config, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict with the released types."""
    rng = np.random.default_rng(seed)
    return {
        name: random_array(rng, slot.torch_shape).astype("f2" if slot.rule.half else "f4")
        for slot in models.slots(kind, config)
        for name in slot.names
    }


def random_adapter(config: FlowConfig = FLOW, settings: LoRAConfig = LORA, seed: int = 1) -> dict:
    """LoRA leaves, neither of them zero."""
    rng = np.random.default_rng(seed)
    branches = [s for s in dso.slots(config, settings) if s.names[0].endswith(dso.BRANCH)]
    return convert.unflatten({slot.path: random_array(rng, slot.shape) for slot in branches})


def write_model(folder: Path, stem: str, kind, config) -> None:
    """A model's `.json` and `.safetensors`."""
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    arguments = dataclasses.asdict(config) | {"use_fp16": True}
    if kind == "flow":  # as published: heads by their width
        arguments |= {"num_heads": None, "num_head_channels": 10}
        arguments.pop("pe_mode")
    description = {"name": CLASSES[kind], "args": arguments}
    (folder / f"{stem}.json").write_text(json.dumps(description))
    files.write(folder / f"{stem}.safetensors", random_state(kind, config))


def write_pipeline(folder: Path) -> Path:
    """A pipeline folder with the published file names."""
    sizes: list[tuple[str, FlowConfig | DecoderConfig | EncoderConfig]] = [
        ("flow", FLOW),
        ("decoder", DECODERS["three_levels"]),
        ("encoder", ENCODERS["three_levels"]),
    ]
    for (kind, config), stem in zip(sizes, STEMS.values(), strict=False):
        write_model(folder, stem, kind, config)
    last = STEMS["slat_decoder_mesh"]
    (folder / f"{last}.json").write_text('{"name": "SLatMeshDecoder", "args": {}}')
    (folder / f"{last}.safetensors").write_bytes(b"not for us")
    params = {"steps": 25, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0}
    arguments = {
        "models": STEMS,
        "sparse_structure_sampler": {"name": "x", "args": {}, "params": params},
        "image_cond_model": "dinov2_vitl14_reg",
    }
    text = json.dumps({"name": "TrellisImageTo3DPipeline", "args": arguments})
    (folder / "pipeline.json").write_text(text)
    return folder


def write_run(folder: Path, base_sha256: str, base: str = "toybox", config=FLOW) -> Path:
    """A run folder as training leaves it: the best and the last adapter differ."""
    for name, seed in (("adapter", 1), ("adapter-best", 2)):
        write_peft_adapter(
            folder / name,
            random_adapter(config, seed=seed),
            LORA,
            base_sha256=base_sha256,
            metadata={"objective": "dro", "step": str(100 * seed)},
        )
    (folder / "config.yaml").write_text(f"base: {base}\n")
    return folder


def same_bytes(a: dict, b: dict) -> None:
    """Asserts that two state dicts are equal to the byte."""
    assert set(a) == set(b)
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def run(*words) -> int:
    """The exit code of a `dso` command."""
    return main.main([str(word) for word in words])


def refused(capsys, *words) -> str:
    """The one message of a command that cannot be used."""
    capsys.readouterr()
    assert run(*words) == 2
    errors = capsys.readouterr().err
    message = errors[errors.index("error: ") :]
    assert "Traceback" not in errors
    return message


def tree(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
