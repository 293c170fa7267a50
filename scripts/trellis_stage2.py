#!/usr/bin/env python3
"""Meshes of the structures that `dso dataset export-coords` wrote, by your own TRELLIS.

    python trellis_stage2.py COORDS --out MESHES
    python trellis_stage2.py COORDS --out MESHES --model tuned/ --shard 0/4

This file stands alone: it needs numpy and a TRELLIS that works (github.com/microsoft/TRELLIS or
DSO's copy of it, on PYTHONPATH, with a GPU), and nothing of dso-jax. It runs TRELLIS's second stage
as DSO's generate_synthetic_data.py does (12 steps, guidance 3, decimation .95, removal of inner
faces, small holes closed, no texture) and leaves its layout:

    MESHES/CATEGORY/OBJECT/IMG_EEE.glb      y up, image IMG, sample EEE

Every mesh appears whole or not at all, and those that are there are not made again: a job that was
killed goes on when the same command is repeated. --shard I/N takes every N-th object, so that N
GPUs share the work. A sample that fails is named, and the others go on; a repeated run tries it
again. Then `dso label MESHES --into DATA` gives the dataset their labels.

Exit code: 0, 1 if samples failed, 2 if an argument cannot be used.
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np

FORMAT = "dso-jax-coords-1"
SAY_SECONDS = 30.0  # between two lines of progress
log = logging.getLogger("stage2")


def main(argv=None):
    options = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shard, shards = options.shard
    files = find(options.coords)[shard::shards]
    todo = [work for file in files for work in missing(file, options.coords, options.out)]
    log.info("%d objects, %d meshes to make", len(files), len(todo))
    if not todo:
        return 0
    make = stage2(options)
    failed, made, started = 0, 0, time.monotonic()
    said = started
    for file, index, target in todo:
        try:
            vertices, faces = make(*sample(file, index))
            write(target, vertices, faces)
            made += 1
        except (RuntimeError, ValueError) as error:  # torch's own, such as an exhausted memory
            failed += 1
            reason = str(error).splitlines() or [type(error).__name__]
            log.warning("%s: failed: %s", target, reason[0])
        now = time.monotonic()
        if now - said >= SAY_SECONDS:
            said, rate = now, (made + failed) / (now - started)
            left = (len(todo) - made - failed) / rate / 60
            log.info("%d of %d, %.2f meshes/s, %.0f min left", made + failed, len(todo), rate, left)
    log.info("%d meshes made, %d samples failed", made, failed)
    return 1 if failed else 0


def parse(argv):
    """The options of the command line; what cannot be used ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("coords", type=Path, help="folder written by dso dataset export-coords")
    add("--out", type=Path, required=True, help="folder for the meshes")
    add("--model", default="microsoft/TRELLIS-image-large", help="TRELLIS folder or hub name")
    add("--steps", type=int, default=12, help="of the second stage's sampler (default: 12)")
    add("--guidance", type=float, default=3.0, help="its weight (default: 3)")
    add("--simplify", type=float, default=0.95, help="faces to remove; 0 leaves the mesh raw")
    add("--shard", type=share, default=(0, 1), help="I/N: every N-th object from the I-th on")
    add("--device", default="cuda", help="of torch (default: cuda)")
    options = parser.parse_args(argv)
    record = options.coords / "coords.json"
    try:
        found = json.loads(record.read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError) as error:
        parser.error(f"{record}: cannot be read ({error})")
    if found != FORMAT:
        parser.error(f"{record}: format is {found!r}, expected {FORMAT!r}")
    return options


def share(text):
    """I/N as two numbers."""
    index, count = map(int, text.split("/"))
    if not 0 <= index < count:
        raise ValueError(text)
    return index, count


def find(coords):
    """The files of all objects, in an order that every shard sees alike."""
    return sorted(coords.glob("*/*.npz"))


def missing(path, coords, out):
    """(file, index of a sample, its mesh) of those that have a structure but no mesh yet."""
    folder = out / path.relative_to(coords).with_suffix("")
    with np.load(path) as file:
        shown = set(file["condition_views"].tolist())
        sizes = np.diff(file["starts"]).tolist()
        keys = list(zip(file["views"].tolist(), file["samples"].tolist(), strict=True))
    for index, ((view, number), size) in enumerate(zip(keys, sizes, strict=True)):
        target = folder / f"{view:03d}_{number:03d}.glb"
        if size and view in shown and not target.exists():
            yield path, index, target


def sample(path, index):
    """(seed, (voxels, 3) coordinates, condition or picture) of one sample."""
    with np.load(path) as file:
        begin, end = file["starts"][index : index + 2]
        view = file["condition_views"].tolist().index(file["views"][index])
        shown = file["conditions"][view]
        if shown.dtype == np.uint16:  # bits of bfloat16
            shown = (shown.astype(np.uint32) << 16).view(np.float32)
        return int(file["seeds"][index]), file["coords"][begin:end].astype(np.int32), shown


def stage2(options):
    """Loads TRELLIS; gives a function of what `sample` gives, to vertices (z up) and faces."""
    os.environ.setdefault("SPCONV_ALGO", "native")  # the other one benchmarks every new shape
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar a sample
    import torch
    from trellis.pipelines import TrellisImageTo3DPipeline

    pipeline = TrellisImageTo3DPipeline.from_pretrained(options.model)
    pipeline.to(torch.device(options.device))
    settings = {"steps": options.steps, "cfg_strength": options.guidance}

    def condition(shown):
        if shown.dtype == np.uint8:  # the picture as TRELLIS prepares it
            from PIL import Image

            return pipeline.get_cond([Image.fromarray(shown)])
        given = torch.from_numpy(shown.astype(np.float32))[None].to(options.device)
        return {"cond": given, "neg_cond": torch.zeros_like(given)}

    @torch.no_grad()
    def make(seed, voxels, shown):
        coords = torch.from_numpy(voxels)
        # TRELLIS's sparse tensors want (number in the batch, x, y, z).
        coords = torch.cat([torch.zeros_like(coords[:, :1]), coords], 1).to(options.device)
        torch.manual_seed(seed)
        slat = pipeline.sample_slat(condition(shown), coords, settings)
        mesh = pipeline.decode_slat(slat, ["mesh"])["mesh"][0]
        vertices, faces = mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy()
        if not len(faces):
            raise ValueError("the mesh is empty")
        return clean(vertices, faces, options.simplify) if options.simplify else (vertices, faces)

    return make


def clean(vertices, faces, simplify):
    """What TRELLIS's to_glb does to a mesh before its texture, with to_glb's own settings."""
    from trellis.utils import postprocessing_utils

    return postprocessing_utils.postprocess_mesh(
        vertices,
        faces,
        simplify=True,
        simplify_ratio=simplify,
        fill_holes=True,
        fill_holes_max_hole_size=0.04,
        fill_holes_max_hole_nbe=int(250 * (1 - simplify) ** 0.5),
        fill_holes_resolution=1024,
        fill_holes_num_views=1000,
    )


def write(path, vertices, faces):
    """Writes a GLB, y up as its readers expect, under its final name once it is whole."""
    import trimesh  # TRELLIS needs it too

    x, y, z = np.asarray(vertices, np.float64).T
    data = trimesh.Trimesh(np.stack([x, z, -y], 1), faces).export(file_type="glb")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
