"""`dso toybox pretrain`: trains the embedded world's generator anew."""

from __future__ import annotations

from collections.abc import Sequence

from dso_jax.errors import UsageError

HELP = """usage: dso toybox pretrain [OPTIONS]

Trains the autoencoder and the flow of the embedded world; minutes on one GPU.
`dso toybox pretrain --help` lists the options."""


def main(argv: Sequence[str]) -> int:
    """Runs the action that is named first.

    Raises:
        UsageError: no such action.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    action, *rest = argv
    if action != "pretrain":
        raise UsageError(f"dso toybox {action}: expected `pretrain`")
    # Imported here: it imports JAX and takes a second.
    from dso_jax.toybox import pretrain

    return pretrain.main(rest)
