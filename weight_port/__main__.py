"""`python -m weight_port SRC DST`: weights from one file layout to another."""

# ruff: noqa: T201 - this is a command, and printing is how it answers

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

_HELP = """\
Convert weights between the layouts in which TRELLIS, DSO, PEFT and DINOv2 files come.

SRC is a file (.safetensors, or .pt/.pth/.bin, which need torch installed) or a PEFT adapter folder.
What it is follows from the names of its tensors. Every tensor must fit: a file that lacks one, or
has one too many, is refused with all of them by name, and nothing is written.
"""
_EPILOG = """\
layouts (--to)
  base       a state dict with TRELLIS's own names: flow model, structure encoder or decoder
  dso        flow model and adapter in one file, as DSO's example.py loads it
  peft       the adapter alone: a folder for PeftModel.from_pretrained
  merged     the adapter folded into the flow model: the names of `base`, loads anywhere
  dinov2     DINOv2 with the names of the torch hub
  dinov2_hf  DINOv2 with the names of Hugging Face
Without --to, the layout stays and only the file format changes (to safetensors).

what can become what
  dso                  -> base, peft, merged
  peft, with --base    -> dso, merged
  base, merged         -> base         (a folded adapter cannot be told apart again)
  dinov2 <-> dinov2_hf

With --base, what SRC has of the base must be equal to it to the bit, and an adapter that records
another base is refused.

exit codes
  0  written, and read back
  2  SRC, DST or an argument cannot be used; nothing was written

examples
  python -m weight_port flow.pt flow.safetensors --half float16
  python -m weight_port dro-4000iters.safetensors adapter/ --to peft
  python -m weight_port dro-4000iters.safetensors flow.safetensors --to merged
  python -m weight_port adapter/ dso.safetensors --to dso --base ckpts/flow.safetensors
  python -m weight_port dinov2_vitl14_reg4_pretrain.pth dinov2.safetensors
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see python -m weight_port --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; see `--help`.

    Returns:
      The exit code: 0, or 2 after one message on stderr.
    """
    options = _parser().parse_args(argv)
    # JAX takes a second to import; `--help` and typing mistakes need not wait.
    from weight_port.errors import WeightError

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        _convert(options)
    except WeightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename2 or error.filename or options.destination
        print(f"error: {place}: {error.strerror}; nothing was written", file=sys.stderr)
        return 2
    return 0


def _convert(options: argparse.Namespace) -> None:
    from weight_port import folders, layouts, layouts_write
    from weight_port.errors import WeightError

    destination = folders.check_new(options.destination)
    base, sha256, flow = None, None, None
    if options.base is not None:
        base = layouts.read(options.base)
        flow, sha256 = layouts.flow_config(base), layouts.sha256(options.base)
    checkpoint = layouts.read(options.source, flow=flow, alpha=options.alpha, base_sha256=sha256)
    layout = options.to or ("base" if checkpoint.layout == "merged" else checkpoint.layout)
    if (layout == "peft") == (destination.suffix == ".safetensors"):
        expected = "a folder" if layout == "peft" else "a .safetensors file"
        raise WeightError(f"{destination}: {layout} is written as {expected}")
    if layout == "peft" and options.half:
        raise WeightError("--half: an adapter is kept in fp32")
    if base is not None:
        checkpoint = layouts.with_base(checkpoint, base)
    half = layouts_write.HALVES[options.half] if options.half else None
    layouts_write.write(destination, checkpoint, layout, base_sha256=sha256, half=half)
    layouts.read(destination, flow=flow)
    print(f"{destination}: written as {layout}, and read back")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m weight_port",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a weight file or a PEFT adapter folder")
    parser.add_argument("destination", metavar="DST", help="what to write; must not exist yet")
    parser.add_argument(
        "--to",
        choices=("base", "dso", "peft", "merged", "dinov2", "dinov2_hf"),
        metavar="LAYOUT",
        help="base, dso, peft, merged, dinov2 or dinov2_hf; see below",
    )
    parser.add_argument(
        "--base", metavar="FILE", help="weights of the flow model that an adapter was trained on"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="of a DSO checkpoint, which states none (default: twice its rank, as DSO trains)",
    )
    parser.add_argument(
        "--half",
        choices=("float16", "bfloat16", "float32"),
        metavar="TYPE",
        help="type of the tensors that TRELLIS publishes in 16 bits: float16, bfloat16 or float32 "
        "(default: each as it is; float16 where an adapter is merged)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
