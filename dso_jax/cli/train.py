"""`dso train`: the command line of train.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

GUARDED = 3
STOPPED = 130  # as a shell reports a command that SIGINT ended


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say.

    Returns:
        0 when the run is finished; 130 when SIGINT or SIGTERM stopped it after saving; 3 when a
        guard did, or when losses are not finite.
    """
    from dso_jax import config_io

    config = config_io.parse(argv)
    from dso_jax.training import processes

    processes.connect(config.system)  # before anything asks JAX for its devices
    import train
    from dso_jax.training.metrics import NonFiniteError

    try:
        result = train.main(config)
    except NonFiniteError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return GUARDED
    if result.guard is not None:
        return GUARDED
    return 0 if result.finished else STOPPED
