"""The argument parser of the commands and its numbers: a mistake is one line and exit code 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
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


def whole(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` on."""

    def parse_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value}: expected at least {least}")
        return value

    parse_number.__name__ = "whole number"
    return parse_number


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: expected a number")
    return value
