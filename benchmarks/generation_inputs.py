"""What `generation.py` generates from: random weights, drawn pictures, and solids of meshes."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from dso_jax.models.config import DINOV2_SIZES, DecoderConfig, DINOv2Config, FlowConfig
from dso_jax.pretrained import pipeline
from dso_jax.sampler import SamplerConfig

ROOT = Path(__file__).resolve().parent.parent
MESHES = ROOT / "tests/data/meshes"
POOL = 2**22 + 3  # random numbers, of which every tensor is made; odd, so that no period fits one


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the three networks are.

    Attributes:
        edge: of the pictures, in pixels.
        solids: edge of the grids; that of the decoder's logits.
    """

    flow: FlowConfig
    decoder: DecoderConfig
    encoder: DINOv2Config
    edge: int
    solids: int


SIZES = {
    "full": Size(FlowConfig(), DecoderConfig(), DINOV2_SIZES["dinov2_vitl14_reg"], 1024, 64),
    "tiny": Size(
        FlowConfig(resolution=4, model_channels=48, cond_channels=64, num_blocks=2, num_heads=3),
        DecoderConfig(channels=(8, 4, 2), num_res_blocks=1, num_res_blocks_middle=1),
        DINOv2Config(64, 1, 1, mlp_ratio=1.0, patch_size=7, image_size=14, num_registers=2),
        64,
        16,
    ),
}


def write_pipeline(folder: Path, size: Size) -> tuple[Path, Path]:
    """A folder as TRELLIS publishes it, and an image encoder's file; (folder, file).

    Types are those of the release: 1.3 GB and, for the encoder in fp32, 1.2 GB at full size.
    """
    base, encoder = folder / "pipeline", folder / "encoder.safetensors"
    kinds = {pipeline.FLOW: size.flow, pipeline.DECODER: size.decoder}
    stems = {role: f"ckpts/{pipeline.ROLES[role].kind}" for role in kinds}
    for role, config in kinds.items():
        kind, upstream, _ = pipeline.ROLES[role]
        _write_random(base / f"{stems[role]}.safetensors", kind, config)
        contents = {"name": upstream, "args": dataclasses.asdict(config)}
        pipeline.write_json(base / f"{stems[role]}.json", contents)
    pipeline.write(base, stems, SamplerConfig())
    _write_random(encoder, "dinov2", size.encoder)
    return base, encoder


def _write_random(path: Path, kind, config) -> None:
    """Tensors cut out of one pool of normal numbers, from another place each.

    No layer is left at zero and activations keep their scale: a matrix unit runs faster on zeros.
    """
    from dso_jax.models.embedding import position_embedding
    from weight_port import files, models

    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    scaled: dict[tuple, np.ndarray] = {}
    tensors, start = {}, 0
    for slot in models.slots(kind, config):
        for name in slot.names:
            shape, dtype = slot.torch_shape, np.float16 if slot.rule.half else np.float32
            fan_in = int(np.prod(shape[1:]))
            # Vectors are biases, or scales about 1.
            matrix = len(shape) > 1 and not name.endswith("gamma")
            one = not matrix and not name.endswith("bias")
            factor = fan_in**-0.5 if matrix else 0.1
            key = (round(factor, 9), one, dtype)
            if key not in scaled:
                scaled[key] = (pool * factor + one).astype(dtype)
            if name == "pos_emb":
                tensors[name] = position_embedding(config).astype(dtype)
                continue
            source, count = scaled[key], int(np.prod(shape))
            start = (start + 65_537) % POOL
            tensors[name] = np.resize(np.roll(source, -start) if count > 1 else source, shape)
    files.write(path, tensors)


def write_pictures(folder: Path, count: int, edge: int) -> None:
    """RGBA pictures of stacks of ellipses and boxes, rough as photographs, on transparent ground.

    Of more than 64 the others are the same files by other names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"picture-{number:04d}.png" for number in range(count)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: _draw(paths[number], number, edge), range(min(count, 64))))
    for number in range(64, count):
        if not paths[number].exists():
            os.link(paths[number % 64], paths[number])


def _draw(path: Path, number: int, edge: int) -> None:
    rng = np.random.default_rng(number)
    picture = Image.new("RGBA", (edge, edge))
    draw = ImageDraw.Draw(picture)
    for part in range(6):
        wide, high = rng.uniform(0.1, 0.35, 2) * edge
        x, y = edge * rng.uniform(0.35, 0.65), edge * (0.2 + 0.1 * part)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        colour = (*rng.integers(30, 225, 3).tolist(), 255)
        shape((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), fill=colour)
    pixels = np.array(picture)
    pixels[..., :3] += rng.integers(0, 30, pixels[..., :3].shape, np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1)


def realistic_logits(edge: int) -> Float[np.ndarray, "K R R R"]:
    """Logits of the surfaces of real meshes, each seen from eight sides, upright: 192 at 64^3.

    Random weights decode to noise, which is no body like those of a trained decoder. A trained one
    is sure of nearly all voxels, hence +-4.
    """
    from benchmarks.occupancy_labels import surface_voxels

    shells = [surface_voxels(path, edge) for path in sorted(MESHES.glob("*.obj"))]
    turned = [
        np.rot90(one[::flip], turns, axes=(0, 1))
        for one in shells
        for flip in (1, -1)
        for turns in range(4)
    ]
    return np.where(np.stack(turned), np.float32(4), np.float32(-4))
