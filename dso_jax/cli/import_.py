"""`dso import`: take in a DSO checkpoint, a PEFT adapter or merged weights, checked whole."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from dso_jax.cli.parser import Parser
from dso_jax.errors import UsageError

logger = logging.getLogger(__name__)

_HELP = """\
Read fine-tuned weights that somebody else wrote, and check them against the generator that they
were trained on. What they are follows from the names of their tensors; every tensor must fit, and a
file that lacks one, or has one too many, is refused with all of them by name.

SRC is a .safetensors, .pt or .pth file, a PEFT adapter folder, or a pipeline folder.
"""
_EPILOG = """\
what becomes of it
  DSO checkpoint       base and adapter in one file. Its base must equal --base in every number.
                       DIR becomes an adapter folder
  PEFT adapter folder  DIR becomes an adapter folder that records its base
  merged weights       a flow model's state dict, or a pipeline folder that has one. DIR becomes a
                       pipeline folder with these weights and the other models of --base: use it
                       as --base

exit codes
  0  read, written and verified
  2  an argument or the weights cannot be used, or the disk is full; nothing was written

examples
  dso import dro-4000iters.safetensors --base TRELLIS-image-large --out runs/dso
  dso import tuned/adapter --base toybox --out runs/adapter
  dso import flow.safetensors --base TRELLIS-image-large --out TRELLIS-tuned
"""


def main(argv: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
      UsageError: an argument or the weights cannot be used. Nothing has been written then.
    """
    options = _parser().parse_args(argv)
    # JAX takes seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax.cli import exporting
    from dso_jax.pretrained import hub, pipeline
    from weight_port import folders, layouts

    with exporting.usage_errors(options.out):
        out = folders.check_new(options.out)
        source = Path(options.source)
        if not source.exists():  # before the base, which may have to be fetched
            raise UsageError(f"{source}: no such file or folder")
        base = exporting.load_base(options.base)
        if (source / hub.PIPELINE).is_file():
            stem = pipeline.stem(source, pipeline.FLOW)
            description, source = hub.model_files(source, stem)
            config = pipeline.model_config(description, pipeline.FLOW)
            if config != base.config:  # heads, for one, leave no trace in the tensors
                raise UsageError(f"{description}: is a {config}, {base.name} is a {base.config}")
        weights = layouts.read(
            source, flow=base.config, alpha=options.alpha, base_sha256=base.sha256
        )
        with folders.new_folder(out) as building:
            if weights.lora is None:
                found = exporting.write_pipeline(building, weights, base, options.others)
            else:
                if weights.layout == "dso":
                    weights = layouts.with_base(weights, base.stored())
                    logger.info("%s: its base equals %s in every number", source, base.name)
                found = exporting.write_peft(building, weights, base)
    kind = "a pipeline folder" if weights.lora is None else "an adapter folder"
    print(f"verified: {found}")
    print(f"{out}: {kind}, from the {weights.layout} layout of {source}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("import", _HELP, _EPILOG)
    parser.add_argument("source", metavar="SRC", help="weight file, adapter or pipeline folder")
    parser.add_argument(
        "--base",
        required=True,
        metavar="PATH",
        help="generator that they were trained from: toybox, a TRELLIS pipeline folder or its name "
        "on the hub",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder to write")
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="of a DSO checkpoint, which states none (default: twice its rank, as DSO trains)",
    )
    parser.add_argument(
        "--others",
        choices=("copy", "link"),
        default="copy",
        help="merged weights: copy the base's other models, or make symbolic links to them "
        "(default: copy)",
    )
    return parser
