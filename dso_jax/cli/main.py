"""`dso COMMAND ...`: finds the command's module, imports it, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import dso_jax
from dso_jax.cli import environment
from dso_jax.errors import UsageError

INTERRUPTED = 130  # as a shell reports a command that SIGINT ended


class Command(NamedTuple):
    """A subcommand: the module whose `main(argv) -> int` runs it, and how to introduce it."""

    module: str
    summary: str
    example: str


COMMANDS = {
    "demo": Command(
        "dso_jax.cli.demo",
        "the whole method on the embedded world: sample, drop, fine-tune, compare",
        "dso demo --seeds 1 --out runs/demo",
    ),
    "sample": Command(
        "dso_jax.cli.sample",
        "one picture in, one mesh out, and whether it stands",
        "dso sample chair.png --base TRELLIS-image-large --out chair.glb",
    ),
    "generate": Command(
        "dso_jax.cli.generate",
        "sample a generator for many pictures and label what it makes: a dataset to train on",
        "dso generate --images 'prompts/*/*.png' --views --samples 4 --out data",
    ),
    "label": Command(
        "dso_jax.cli.label",
        "drop meshes in the simulator and write which of them stand",
        "dso label meshes/ --out labels.parquet --protocol dso-eval",
    ),
    "check": Command(
        "dso_jax.cli.check",
        "one object's card: does it stand, by how much, and what is wrong with its mesh",
        "dso check vase.stl",
    ),
    "evaluate": Command(
        "dso_jax.cli.evaluate",
        "tables, intervals and a report: what stands, at what cost in shape, before and after",
        "dso evaluate samples/ --truth objects/ --out evaluation",
    ),
    "train": Command(
        "dso_jax.cli.train",
        "fine-tune a generator on labelled samples with SFT, DPO or DRO",
        "dso train --config configs/toybox-dro.yaml --optim.learning_rate 1e-4",
    ),
    "export": Command(
        "dso_jax.cli.export",
        "write a trained run for torch: a DSO checkpoint, a PEFT adapter, or merged weights",
        "dso export runs/dro --layout merged --base TRELLIS-image-large --out tuned",
    ),
    "import": Command(
        "dso_jax.cli.import_",
        "read a DSO checkpoint, a PEFT adapter or merged weights, and check every tensor",
        "dso import dso_dro.safetensors --base TRELLIS-image-large --out runs/dso",
    ),
    "dataset": Command(
        "dso_jax.cli.dataset",
        "look into a dataset folder, or exchange one with DSO's own scripts",
        "dso dataset import-dso data/dso --out data/pairs",
    ),
    "toybox": Command(
        "dso_jax.cli.toybox",
        "the embedded world of procedural objects: pretrain its generator",
        "dso toybox pretrain --out runs/toybox",
    ),
    "doctor": Command(
        "dso_jax.cli.doctor",
        "print versions, devices, what is missing and what that disables",
        "dso doctor --json",
    ),
}


def usage() -> str:
    """The text of `dso --help`: every command with one example."""
    lines = ["usage: dso COMMAND [ARGUMENTS]", ""]
    lines += ["Post-train image-to-3D generators so that what they make stands up.", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<8} {command.summary}", f"  {'':<8}   $ {command.example}"]
    lines += [
        "",
        environment.OPTIONS,
        "",
        "`dso COMMAND --help` tells the rest; new here? dso demo",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after `dso`; those of the process by default.

    Returns:
        The exit code: 0, 2 for arguments or input that cannot be used, 130 after Ctrl-C, or what
        the command returns.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str]) -> int:
    argv = environment.take_options(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"dso-jax {dso_jax.__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}; expected one of {', '.join(COMMANDS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("absl", "jax"):  # orbax tells of every file, JAX of every absent platform
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return importlib.import_module(COMMANDS[name].module).main(rest)


if __name__ == "__main__":
    sys.exit(main())
