"""`dso toybox pretrain`: trains the embedded world's generator anew.

Without postponed annotations: tyro reads those of a class whose types are imported late.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from dso_jax.errors import UsageError

logger = logging.getLogger(__name__)

HELP = """usage: dso toybox pretrain [OPTIONS]

Trains the autoencoder and the flow of the embedded world; minutes on one GPU.
`dso toybox pretrain --help` lists the options."""


def main(argv: Sequence[str]) -> int:
    """Runs the action that is named first; returns 0.

    Raises:
        UsageError: no such action, or a folder that cannot be written.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    action, *rest = argv
    if action != "pretrain":
        raise UsageError(f"dso toybox {action}: expected `pretrain`")
    _pretrain(rest)
    return 0


def _pretrain(argv: Sequence[str]) -> None:
    # Imported here: these import JAX, and an unknown action needs an answer at once.
    from dso_jax import pretrained
    from dso_jax.models import DECODER_SIZES, ENCODER_SIZES, FLOW_SIZES
    from dso_jax.sampler import SamplerConfig
    from dso_jax.toybox.pretrain import PretrainConfig, pretrain

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
    pretrained.save(arguments.out, models, SamplerConfig(), metadata)
    logger.info("wrote %s", arguments.out)
