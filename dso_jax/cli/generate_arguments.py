"""What `dso generate` takes, checked before anything is read or written."""

from __future__ import annotations

import argparse

from dso_jax.cli.generate_help import DESCRIPTION, EPILOG
from dso_jax.cli.label_arguments import shard
from dso_jax.cli.parser import Parser, number, whole
from dso_jax.errors import UsageError

BASE = "TRELLIS-image-large"
TOYBOX = "toybox"
TOYBOX_OBJECTS = 64
_LARGEST_SEED = 2**31 - 1


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of a command line; `shard` becomes (i, n) and `prompts` a number of objects.

    Raises:
      UsageError: one of them cannot be used.
    """
    options = _parser().parse_args(argv)
    if (options.images is None) == (options.prompts is None):
        raise UsageError("generate: give either --images or --prompts (see dso generate --help)")
    if options.seed > _LARGEST_SEED:
        raise UsageError(f"generate: --seed {options.seed}: seeds go up to {_LARGEST_SEED}")
    if options.prompts is not None:
        for name in ("views", "encoder", "remover"):
            if getattr(options, name):
                raise UsageError(f"generate: --{name} is for --images, not for --prompts")
        if options.store != "conditions":
            raise UsageError("generate: --store: the toybox's conditions are smaller than pictures")
        options.prompts = _toybox_count(options.prompts)
    options.shard = shard(options.shard, "generate") or (0, 1)
    return options


def _toybox_count(text: str) -> int:
    name, _, count = text.partition(":")
    if name != TOYBOX or not (count == "" or (count.isdecimal() and int(count) > 0)):
        raise UsageError(f"generate: --prompts {text}: expected {TOYBOX} or {TOYBOX}:COUNT")
    return int(count or TOYBOX_OBJECTS)


def _parser() -> argparse.ArgumentParser:
    made = Parser("generate", DESCRIPTION, EPILOG)
    add = made.add_argument
    add("--images", nargs="+", metavar="PATH", help="picture files, folders or quoted globs")
    add(
        "--prompts",
        metavar="toybox[:COUNT]",
        help=f"objects of the embedded toybox instead (default count: {TOYBOX_OBJECTS})",
    )
    add("--out", required=True, metavar="DATA", help="dataset folder to make or go on with")
    add(
        "--base",
        "--pipeline",
        metavar="NAME",
        help="generator: toybox, a TRELLIS pipeline folder or its name on the hub (default: the "
        f"one that --adapter's run records, toybox for --prompts, else {BASE})",
    )
    add("--samples", type=whole(1), default=4, metavar="N", help="of each picture (default: 4)")
    add(
        "--first-sample",
        type=whole(0),
        default=0,
        metavar="K",
        help="number of the first one, for more samples of the same pictures (default: 0)",
    )
    add("--seed", type=whole(0), default=0, metavar="S", help="of the noise (default: 0)")
    add(
        "--views",
        action="store_true",
        help="the pictures of one folder show one object (default: each shows one of its own)",
    )
    add(
        "--adapter",
        metavar="RUN",
        help="post-trained weights: a run folder of dso train, a PEFT folder or a DSO checkpoint",
    )
    add("--protocol", default="dso-eval", metavar="NAME|YAML", help="of the drop, see dso label")
    add("--steps", type=whole(1), metavar="N", help="of the sampler (default: the generator's)")
    add("--guidance", type=number, metavar="W", help="weight (default: the generator's)")
    add("--encoder", metavar="PATH", help="DINOv2 (default: what the generator names)")
    add(
        "--remover",
        metavar="FILE",
        help="of backgrounds: a U2-Net .onnx file, or rembg (default: rembg if it is installed)",
    )
    add(
        "--store",
        choices=("conditions", "images", "both"),
        default="conditions",
        help="what is kept of a picture: its condition (2.8 MB), itself (0.8 MB), from which dso "
        "train --conditions online computes it again, or both",
    )
    add("--meshes", action="store_true", help="also write DATA/meshes/CATEGORY/OBJECT/IMG_EEE.glb")
    add("--shard", metavar="I/N", help="make every N-th block from the I-th on, or auto")
    add(
        "--batch",
        type=whole(1),
        metavar="N",
        help="samples a call (default: 32 on GPUs, where more are not faster, else 64)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the transformer, latents and conditions (default: auto, that is bfloat16 on "
        "accelerators, float32 on CPUs and for the toybox)",
    )
    add("--strict", action="store_true", help="stop at the first picture that cannot be used")
    add("--timings", metavar="FILE", help="write where the time went, as JSON")
    return made
