"""What `dso sample` takes, and what its help teaches."""

from __future__ import annotations

import argparse

from dso_jax.cli.parser import Parser, number, whole
from dso_jax.errors import UsageError

BASE = "TRELLIS-image-large"
HEIGHT_MM = 100.0
_LARGEST_SEED = 2**31 - 1

_HELP = """\
Generate one object from one picture, drop it in the simulator, and write its mesh.

IMAGE is a picture file, best one whose background is transparent: any other loses its background
to a remover (--remover). toybox:SEED stands for the picture of an object of the embedded toybox,
whose generator needs no download; a 32 x 32 file is taken for one that the toybox rendered.
"""
_EPILOG = """\
what comes out
  OUT       the surface of the solid that was dropped, by marching cubes of the occupancy: closed,
            lowest point at 0. GLB is in metres as its specification says, STL, OBJ, PLY and 3MF
            are in millimetres; GLB and OBJ have y up, the others z, unless --up says otherwise
  one line  whether it stands: the tilt in which it ends, the margin (the smallest angle by which
            it would have to be tipped to fall, as it starts), and whether it came to rest

  --best-of N draws the seeds S, S+1, ... S+N-1 and keeps the one that stands with the largest
  margin; a table shows all. The seed in the last line gives the same mesh alone.

  `dso label OUT --protocol solid` labels the mesh as the occupancy is labelled here. The default
  there, dso-eval, takes the inertia that DSO took, which counts concave parts of a mesh twice:
  objects with a margin of a degree or two may then get the other label.

exit codes
  0  written, whether it stands or falls
  2  an argument, the picture or the weights cannot be used, or no sample is a solid; nothing was
     written

examples
  dso sample toybox:3 --out biped.stl
  dso sample chair.png --out chair.glb --best-of 8
  dso sample photo.jpg --remover u2net.onnx --out chair.3mf --height-mm 120 --simplify 0.2
  dso sample chair.png --adapter runs/dro --out chair.glb --seed 7
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of a command line.

    Raises:
      UsageError: one of them cannot be used.
    """
    options = _parser().parse_args(argv)
    if options.seed + options.best_of - 1 > _LARGEST_SEED:
        raise UsageError(f"sample: --seed {options.seed}: seeds go up to {_LARGEST_SEED}")
    return options


def _parser() -> argparse.ArgumentParser:
    made = Parser("sample", _HELP, _EPILOG)
    add = made.add_argument
    add("image", metavar="IMAGE", help="picture file, or toybox:SEED")
    add("--out", required=True, metavar="FILE", help="mesh to write: .glb .stl .obj .ply .3mf")
    add(
        "--base",
        metavar="NAME",
        help="generator: toybox, a TRELLIS pipeline folder or its name on the hub (default: the "
        f"one that --adapter's run records, toybox for toybox:SEED, else {BASE})",
    )
    add(
        "--adapter",
        metavar="RUN",
        help="post-trained weights: a run folder of dso train (adapter-best/, else adapter/), a "
        "PEFT adapter folder, or a DSO checkpoint (.safetensors, .pt)",
    )
    add(
        "--encoder",
        metavar="PATH",
        help="DINOv2 that the generator was trained with: a .pth or .safetensors file, a folder, "
        "or a name on the hub (default: what the generator names)",
    )
    add(
        "--remover",
        metavar="FILE",
        help="of backgrounds: a U2-Net .onnx file, or rembg (default: rembg if it is installed)",
    )
    add("--seed", type=whole(0), default=0, metavar="S", help="of the noise (default: 0)")
    add("--best-of", type=whole(1), default=1, metavar="N", help="samples to draw (default: 1)")
    add("--steps", type=whole(1), metavar="N", help="of the sampler (default: the generator's)")
    add("--guidance", type=number, metavar="W", help="weight (default: the generator's)")
    add(
        "--protocol",
        default="dso-eval",
        metavar="NAME|YAML",
        help="of the drop, see dso label --help (default: dso-eval)",
    )
    add(
        "--height-mm",
        type=_positive,
        default=HEIGHT_MM,
        metavar="H",
        help=f"of the object (default: {HEIGHT_MM:g})",
    )
    add("--up", choices=("y", "z"), help="up axis of the file (default: by format)")
    add(
        "--smooth",
        type=whole(0),
        default=0,
        metavar="N",
        help="rounds of smoothing, 5 take the steps of the voxels away; soles stay flat. The label "
        "is that of the object before it (default: 0)",
    )
    add(
        "--simplify",
        type=_positive,
        metavar="MM",
        help="fewer triangles, where that moves the surface by no more than about MM (try 0.2); "
        "the mesh stays closed. The label is that of the object before it",
    )
    return made


def _positive(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}: expected more than zero")
    return value
