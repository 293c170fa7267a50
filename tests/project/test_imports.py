"""Which room may use which: DESIGN in one table, read from the source with ast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("dso_jax", "sim_mjx", "weight_port", "train", "benchmarks", "tests")
# These put the parts together, so they may use all of them.
TOP = ("dso_jax.cli", "dso_jax.pretrained", "dso_jax.demo", "dso_jax.demo_toybox", "train")
# Package -> the packages of ours that it may use beside itself. The longest name counts.
MAY_USE = {
    "sim_mjx": (),
    "dso_jax.models": (),
    "weight_port": ("dso_jax.models", "dso_jax.__version__"),
    "dso_jax": ("sim_mjx",),
    # A run folder's adapter/ is a PEFT folder, and its base a torch file: these write and read.
    "dso_jax.training": ("dso_jax", "sim_mjx", "weight_port"),
    # DSO's data folder is made of .pt files: this module reads and writes them.
    "dso_jax.dso_folder.layout": ("dso_jax", "sim_mjx", "weight_port"),
}
HEAVY = ("flax", "optax", "orbax", "grain", "torch")  # the simulator does without


def modules() -> dict[str, Path]:
    """Name -> file of every module that is installed."""
    files = [ROOT / "train.py"]
    for package in ("dso_jax", "sim_mjx", "weight_port"):
        files += sorted((ROOT / package).rglob("*.py"))
    names = (path.relative_to(ROOT).with_suffix("").parts for path in files)
    dotted = (".".join(parts).removesuffix(".__init__") for parts in names)
    return dict(zip(dotted, files, strict=True))


def imports(source: str, name: str) -> set[str]:
    """Full names that a module imports, relative ones resolved against its own name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(name.split(".")[: -node.level]) + "." if node.level else ""
            stem = f"{package}{node.module or ''}".strip(".")
            found |= {f"{stem}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def breaches(name: str, used: set[str]) -> list[str]:
    """The imports of ours that module `name` may not use."""
    if any(within(name, top) for top in TOP):
        return []
    home = max((package for package in MAY_USE if within(name, package)), key=len)
    allowed = (home, *MAY_USE[home])
    bad = []
    for one in sorted(used):
        ours = any(within(one, package) for package in OURS)
        upwards = any(within(one, top) for top in TOP if top != "dso_jax.pretrained")
        if ours and (upwards or not any(within(one, package) for package in allowed)):
            bad.append(one)
    return bad


@pytest.mark.parametrize("name", sorted(modules()))
def test_module_uses_only_what_it_may(name):
    used = imports(modules()[name].read_text("utf-8"), name)
    assert breaches(name, used) == []
    if within(name, "sim_mjx"):
        assert not [one for one in used if one.split(".")[0] in HEAVY]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("sim_mjx.drop", "from dso_jax.flow import velocity", ["dso_jax.flow.velocity"]),
        ("dso_jax.models.lora", "import dso_jax.config", ["dso_jax.config"]),
        ("weight_port.peft", "from dso_jax.models import lora", []),
        ("dso_jax.evaluation.evaluate", "from weight_port import peft", ["weight_port.peft"]),
        (
            "dso_jax.evaluation.evaluate",
            "def f():\n  from dso_jax.cli import main",
            ["dso_jax.cli.main"],
        ),
        (
            "dso_jax.models.lora",
            "from ..dataset.store import Dataset",
            ["dso_jax.dataset.store.Dataset"],
        ),
        ("dso_jax.cli.demo", "from weight_port import peft", []),
    ],
)
def test_a_forbidden_import_is_seen(name, source, expected):
    assert breaches(name, imports(source, name)) == expected


def test_nothing_imports_torch_or_starts_a_device():
    """Every module is importable without torch and without touching a device."""
    program = (
        "import importlib, sys\n"
        "sys.modules['torch'] = None\n"  # import torch now raises ImportError
        f"for name in {sorted(modules())!r}:\n    importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_command_starts_without_jax():
    """JAX reads its environment at import, and `dso` must set it before."""
    program = (
        "import sys, dso_jax.cli.main, dso_jax.cli.environment; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
