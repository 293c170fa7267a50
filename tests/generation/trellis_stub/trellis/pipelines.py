"""`TrellisImageTo3DPipeline` as the script uses it, strict about what it is given.

Its second stage makes the surface of the voxels themselves, interior filled; `from_pretrained`
takes the edge of their grid for a name. The seed moves the mesh by less than nothing can notice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

SEED_MOVES = 1e-6  # of the grid


class Mesh(NamedTuple):
    vertices: torch.Tensor
    faces: torch.Tensor


class Sparse(NamedTuple):
    coords: torch.Tensor
    feats: torch.Tensor


class TrellisImageTo3DPipeline:
    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self.device = torch.device("meta")  # used before `to`, nothing works

    @staticmethod
    def from_pretrained(path: str) -> TrellisImageTo3DPipeline:
        return TrellisImageTo3DPipeline(int(path))

    def to(self, device: torch.device) -> None:
        assert isinstance(device, torch.device)
        self.device = device

    def get_cond(self, images: list) -> dict[str, torch.Tensor]:
        (image,) = images
        assert image.mode == "RGB"
        pixels = torch.from_numpy(np.array(image)).float().reshape(1, -1, 3)
        return {"cond": pixels, "neg_cond": torch.zeros_like(pixels)}

    def sample_slat(self, cond: dict, coords: torch.Tensor, sampler_params: dict) -> Sparse:
        assert sampler_params == {"steps": 12, "cfg_strength": 3.0}
        assert not torch.is_grad_enabled()
        assert cond["cond"].ndim == 3 and cond["cond"].shape[0] == 1
        assert cond["cond"].dtype == torch.float32 and cond["cond"].any()
        assert cond["neg_cond"].shape == cond["cond"].shape and not cond["neg_cond"].any()
        assert coords.dtype == torch.int32 and coords.shape[1] == 4 and not coords[:, 0].any()
        if not cond["cond"].max() < 1000:
            raise RuntimeError("CUDA error: out of memory\nand more")
        return Sparse(coords, torch.randn(len(coords), 8).to(self.device))

    def decode_slat(self, slat: Sparse, formats: list[str]) -> dict[str, list[Mesh]]:
        assert formats == ["mesh"]
        solid = np.zeros((self.resolution,) * 3, bool)
        solid[tuple(slat.coords[:, 1:].numpy().T)] = True
        vertices, faces = surface(ndimage.binary_fill_holes(solid))
        moved = vertices / self.resolution - 0.5 + SEED_MOVES * slat.feats[0, 0].item()
        return {"mesh": [Mesh(torch.from_numpy(moved).float(), torch.from_numpy(faces))]}


def surface(solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces of voxels that have no neighbour there, two triangles each, outward."""
    wide = np.pad(solid, 1)
    squares = []
    for axis in range(3):
        u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
        for step in (1, -1):
            bare = wide & ~np.roll(wide, -step, axis)
            corner = np.argwhere(bare) - 1.0 + (np.eye(3)[axis] if step == 1 else 0)
            around = [corner, corner + u, corner + u + v, corner + v]
            squares.append(np.stack(around if step == 1 else around[::-1], 1))
    corners = np.concatenate(squares)
    vertices, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    a, b, c, d = index.reshape(-1, 4).T
    return vertices, np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
