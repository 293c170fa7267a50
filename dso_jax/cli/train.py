"""`dso train`: the command line of train.py."""

from __future__ import annotations

from collections.abc import Sequence

STOPPED = 130  # as a shell reports a command that SIGINT ended


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say.

    Returns:
        0 when the run is finished; 130 when SIGINT or SIGTERM stopped it after saving.
    """
    from dso_jax import config_io

    config = config_io.parse(argv)
    from dso_jax.training import processes

    processes.connect(config.system)  # before anything asks JAX for its devices
    import train

    return 0 if train.main(config).finished else STOPPED
