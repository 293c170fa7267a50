"""Long work in named stages that a killed run does not repeat.

A stage is known by its name and by a digest of everything that decides its result. A finished stage
with the same digest is skipped; one that was begun with another digest loses its folder first, and
one that was merely interrupted finds its folder as it left it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dso_jax.atomic import write_text
from dso_jax.errors import UsageError

logger = logging.getLogger(__name__)


class Stages:
    """The stages of one run folder, recorded in FOLDER/stages.json.

    Args:
        folder: made if it does not exist.
        total: number of stages to come, for the messages.

    Raises:
        UsageError: the folder cannot be made, or its record cannot be read.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self._path = folder / "stages.json"
        self._total = total
        self._names: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self._path.read_text("utf-8") if self._path.exists() else "{}"
            self._record: dict[str, dict] = json.loads(text)
            self._write()
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
        except ValueError:
            raise UsageError(f"{self._path}: not JSON; remove the folder or take another") from None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage of this run, in order; of the last attempt if it was resumed."""
        return {name: self._record[name]["seconds"] for name in self._names}

    def run(self, name: str, inputs: Mapping, result: Path, work: Callable[[], None]) -> str:
        """Runs `work` unless it is done.

        Args:
            name: of the stage, unique within the folder.
            inputs: JSON values that decide the result, digests of earlier stages among them.
            result: the file or folder that `work` makes.
            work: makes `result`; called again after an interruption, it may go on from there.

        Returns:
            The stage's digest, for the inputs of later stages.
        """
        self._names.append(name)
        text = json.dumps(inputs, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        known = self._record.get(name, {})
        heading = f"[{len(self._names)}/{self._total}] {name}"
        if known.get("digest") == digest and known["seconds"] is not None and result.exists():
            logger.info("%s: done before, in %.0f s", heading, known["seconds"])
            return digest
        if known.get("digest") != digest:
            _remove(result)
        logger.info("%s", heading)
        self._record[name] = {"digest": digest, "seconds": None}
        self._write()
        started = time.monotonic()
        work()
        self._record[name]["seconds"] = time.monotonic() - started
        self._write()
        return digest

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._record, indent=1))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
