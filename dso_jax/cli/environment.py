"""What has to be decided before JAX is imported: devices, memory, the compilation cache.

JAX reads these from the environment when it is first imported, so this module must not import it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from dso_jax.errors import UsageError

OPTIONS = """\
options of every command, anywhere on the line:
  --devices D          cpu, gpu, the numbers of some GPUs (0,1), or cpu:N for N virtual CPU devices
  --memory-fraction F  the part of the GPU's memory that JAX takes at its start, 0 < F <= 1"""


def take_options(argv: Sequence[str], environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Takes `--devices` and `--memory-fraction` off the line and sets the environment for JAX.

    Also turns the persistent compilation cache on, unless `JAX_COMPILATION_CACHE_DIR` is set
    (an empty value turns it off).

    Returns:
        The arguments that are left, in their order.

    Raises:
        UsageError: an option has no value, or one that it does not take.
    """
    rest, taken = [], {}
    arguments = iter(argv)
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if name not in ("--devices", "--memory-fraction"):
            rest.append(argument)
            continue
        if not has_value:
            value = next(arguments, "")
        if not value or value.startswith("--"):
            raise UsageError(f"{name} needs a value")
        taken[name] = value
    if "--devices" in taken:
        environ.update(_devices(taken["--devices"], environ.get("XLA_FLAGS", "")))
    if "--memory-fraction" in taken:
        environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = _fraction(taken["--memory-fraction"])
    environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir(environ)))
    # JAX keeps only what took a second to compile; a demo's many small programs add up.
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    return rest


def cache_dir(environ: MutableMapping[str, str] = os.environ) -> Path:
    """The folder of compiled programs: `$XDG_CACHE_HOME/dso-jax/xla`, by default in ~/.cache."""
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dso-jax" / "xla"


def cuda_plugins() -> list[str]:
    """The CUDA plugins of JAX that are installed; without one, JAX cannot use any GPU."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return [name for name in names if importlib.util.find_spec(name)]


def install(extra: str) -> str:
    """The command that installs one of the extras of pyproject.toml."""
    return f"in the checkout, run `{sys.executable} -m pip install -e '.[{extra}]'`"


def _devices(value: str, xla_flags: str) -> dict[str, str]:
    if (value == "gpu" or value[0].isdigit()) and not cuda_plugins():
        raise UsageError(f"--devices {value}: JAX is installed without CUDA; {install('cuda13')}")
    if value == "gpu":
        return {"JAX_PLATFORMS": "cuda"}
    if re.fullmatch(r"\d+(,\d+)*", value):
        return {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": value}
    if match := re.fullmatch(r"cpu(?::([1-9]\d*))?", value):
        chosen = {"JAX_PLATFORMS": "cpu"}
        if match[1]:
            flag = f"--xla_force_host_platform_device_count={match[1]}"
            chosen["XLA_FLAGS"] = f"{xla_flags} {flag}".strip()
        return chosen
    raise UsageError(f"--devices {value}: expected cpu, cpu:N, gpu, or GPU numbers such as 0,1")


def _fraction(value: str) -> str:
    try:
        fraction = float(value)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UsageError(f"--memory-fraction {value}: expected a number above 0 and at most 1")
    return value
