"""`dso train`: the command line of train.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dso_jax.errors import UsageError

GUARDED = 3
STOPPED = 130  # as a shell reports a command that SIGINT ended


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say.

    Returns:
        0 when the run is finished; 130 when SIGINT or SIGTERM stopped it after saving; 3 when a
        guard did, or when losses are not finite.
    """
    from dso_jax import config_io

    rest, planned, device = take_plan(argv)
    config = config_io.parse(rest)
    if planned:
        from dso_jax.training import plan

        print(plan.report(config, device))
        return 0
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


def take_plan(argv: Sequence[str]) -> tuple[list[str], bool, str | None]:
    """Takes `--plan` and `--device NAME` off the line: the other arguments, and both.

    Raises:
        UsageError: `--device` without a name or without `--plan`.
    """
    rest, planned, device = [], False, None
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument == "--plan":
            planned = True
        elif name == "--device":
            device = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    if device is not None and (not device or not planned):
        raise UsageError("--device takes the name of a card, after --plan; see also --devices")
    return rest, planned, device
