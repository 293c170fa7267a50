"""`dso toybox`: trains the embedded world's generator anew, or measures one.

Without postponed annotations: tyro reads those of a class whose types are imported late.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from dso_jax.errors import UsageError

logger = logging.getLogger(__name__)

HELP = """usage: dso toybox {pretrain,check} [OPTIONS]

  dso toybox pretrain --workers 16 --out runs/toybox   autoencoder and flow; minutes on one GPU
  dso toybox check --base runs/toybox                  do labels survive the autoencoder, do some
                                                       of the flow's samples fall?
`dso toybox pretrain --help` and `dso toybox check --help` list the options."""


def main(argv: Sequence[str]) -> int:
    """Runs the action that is named first; returns 0.

    Raises:
        UsageError: no such action, or a folder that cannot be written.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    action, *rest = argv
    actions = {"pretrain": _pretrain, "check": _check}
    if action not in actions:
        raise UsageError(f"dso toybox {action}: expected {' or '.join(actions)}")
    actions[action](rest)
    return 0


def _check(argv: Sequence[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Print a toy generator's figures over held-out objects as JSON."""

        base: str = "toybox"
        """The embedded one, or a folder that `dso toybox pretrain` wrote."""
        objects: int = 528
        """Held-out objects."""
        samples: int = 2
        """Samples of each."""
        protocol: str = "fast"
        """Simulation protocol: a preset's name or a YAML file."""

    arguments = tyro.cli(Arguments, args=argv, prog="dso toybox check")
    from dso_jax.toybox.check import check
    from sim_mjx import Protocol, ProtocolError

    if min(arguments.objects, arguments.samples) < 1:
        raise UsageError("--objects and --samples: expected at least 1")
    try:
        protocol = Protocol.resolve(arguments.protocol)
    except ProtocolError as error:
        raise UsageError(str(error)) from error
    figures = check(arguments.base, protocol, arguments.objects, arguments.samples)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))


def _pretrain(argv: Sequence[str]) -> None:
    # Imported here: these import JAX, and an unknown action needs an answer at once.
    from dso_jax import pretrained
    from dso_jax.models import DECODER_SIZES, ENCODER_SIZES, FLOW_SIZES
    from dso_jax.toybox.pretrain import SAMPLER, PretrainConfig, pretrain

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Train the toy generator from scratch and write it as a pipeline folder."""

        pretraining: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        out: Path = Path("runs/toybox")
        """Folder to write; `--base FOLDER` of `dso train` reads it."""

    default = Arguments(PretrainConfig())
    arguments = tyro.cli(Arguments, args=argv, default=default, prog="dso toybox pretrain")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{arguments.out}: cannot be made ({error.strerror})") from None
    weights, origin = pretrain(arguments.pretraining)
    models = {
        pretrained.FLOW: (FLOW_SIZES["toybox"], weights["flow"]),
        pretrained.DECODER: (DECODER_SIZES["toybox"], weights["decoder"]),
        pretrained.ENCODER: (ENCODER_SIZES["toybox"], weights["encoder"]),
    }
    metadata = {name: str(value) for name, value in origin.items()}
    pretrained.save(arguments.out, models, SAMPLER, metadata)
    logger.info("wrote %s", arguments.out)
