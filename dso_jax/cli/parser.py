"""The argument parser of the commands: a mistake is one line and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dso_jax.errors import UsageError


class Parser(argparse.ArgumentParser):
    """`argparse` that keeps the layout of its texts and leaves exits to `dso_jax.cli.main`."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"dso {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with the command's name and where to read on."""
        raise UsageError(f"{self.prog.removeprefix('dso ')}: {message} (see {self.prog} --help)")
