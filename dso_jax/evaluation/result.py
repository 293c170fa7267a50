"""What an evaluation found: one row a mesh, and what they sum up to; saved as JSON and CSV.

`results.json` holds the record, the summary and the curves; `results.csv` one line a mesh, for a
spreadsheet: the columns, then poses (`pose_x` ... `pose_qz`, `before_pose_x` ...) and the tilts of
other engines (`engine_<name>_tilt_deg`). Both are plain: a number that is not finite is `null` in
the one and an empty cell in the other.

Legend: N meshes.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dso_jax.atomic import write_atomic, write_text
from dso_jax.errors import UsageError

JSON_NAME, CSV_NAME = "results.json", "results.csv"
VERSION = 1  # of the two files
REQUIRED = (
    *("path", "object", "view", "sample", "category"),
    *("status", "reason", "stable", "tilt_deg", "rotation_deg"),
    *("margin_deg", "margin_mm", "moving"),
)
BEFORE = "before_"
POSE = tuple(f"pose_{name}" for name in ("x", "y", "z", "qw", "qx", "qy", "qz"))
ENGINE = "engine_{}_tilt_deg"
_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float"}  # of numpy; all else is text
_READ = {"bool": lambda text: text == "true", "int": int, "text": str}


@dataclass(frozen=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
        record: how it was made: command, started, seconds, device, versions, protocol, inputs.
        columns: name -> (N,). `REQUIRED` are always there (`path` is where the mesh lies, `stable`
            is False where `status` is `invalid`, `reason` is empty where there is none); optional
            ones are cd, f_score, iou, survival_<theta>, plate, footprint, volume, height,
            components, watertight, and `before_` with any of these: the same object, view and
            sample before post-training.
        poses: rest pose of the mesh's start frame, xyz in m and quaternion wxyz; NaN where invalid.
        summary: `all`, `before` and `categories` map names to {value, low, high}; `verdict`.
        curves: `survival`: theta, value, low, high; `checkpoints`: step, stable, cd.
        engines: name of another engine -> tilt there, degrees (N,).
        before_poses: as `poses`, of the meshes in `before_path`; None if nothing is compared.
    """

    record: dict[str, Any]
    columns: dict[str, np.ndarray]
    poses: Float[np.ndarray, "N 7"]
    summary: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, list]] = field(default_factory=dict)
    engines: dict[str, np.ndarray] = field(default_factory=dict)
    before_poses: Float[np.ndarray, "N 7"] | None = None

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED if name not in self.columns]
        if missing:
            raise ValueError(f"an evaluation needs the columns {', '.join(missing)}")
        count = len(self)
        wrong = [name for name, c in (self.columns | self.engines).items() if c.shape != (count,)]
        poses = [p for p in (self.poses, self.before_poses) if p is not None]
        if wrong or any(p.shape != (count, len(POSE)) for p in poses):
            raise ValueError(f"not one entry for each of {count} meshes: {wrong or 'poses'}")

    def __len__(self) -> int:
        return len(self.columns["path"])

    def save(self, folder: Path) -> None:
        """Writes `results.csv` and `results.json` into a folder that exists."""
        table = self._table()
        kinds = {name: _kind(values) for name, values in table.items()}
        content = {
            "version": VERSION,
            "record": self.record,
            "rows": len(self),
            "summary": self.summary,
            "curves": self.curves,
            "columns": kinds,
            "engines": list(self.engines),
        }

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(table)
                writer.writerows(zip(*map(_texts, table.values()), strict=True))

        write_atomic(folder / CSV_NAME, write)
        # Last: a folder with results.json has its table.
        text = json.dumps(_plain(content), indent=1, allow_nan=False)
        write_text(folder / JSON_NAME, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Result:
        """Reads what `save` wrote.

        Raises:
            UsageError: the files are missing, cannot be read, or do not belong together.
        """
        try:
            content = json.loads((folder / JSON_NAME).read_text("utf-8"))
            with (folder / CSV_NAME).open(newline="", encoding="utf-8") as file:
                head, *rows = csv.reader(file)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UsageError(f"{folder}: not the folder of an evaluation: {error}") from error
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise UsageError(f"{folder / JSON_NAME}: expected an evaluation of version {VERSION}")
        kinds = content["columns"]
        torn = len(rows) != content["rows"] or any(len(row) != len(head) for row in rows)
        if torn or head != list(kinds):
            raise UsageError(f"{folder / CSV_NAME}: not the table that {JSON_NAME} describes")
        cells = zip(*rows, strict=True) if rows else [()] * len(head)
        columns = {
            name: _column(texts, kinds[name]) for name, texts in zip(head, cells, strict=True)
        }
        engines = {name: columns.pop(ENGINE.format(name)) for name in content["engines"]}
        before = BEFORE + POSE[0] in columns
        return cls(
            record=content["record"],
            poses=np.stack([columns.pop(name) for name in POSE], axis=1),
            before_poses=np.stack([columns.pop(BEFORE + name) for name in POSE], axis=1)
            if before
            else None,
            columns=columns,
            summary=content["summary"],
            curves=content["curves"],
            engines=engines,
        )

    def _table(self) -> dict[str, np.ndarray]:
        table = dict(self.columns)
        table |= dict(zip(POSE, np.asarray(self.poses, np.float64).T, strict=True))
        if self.before_poses is not None:
            named = [BEFORE + name for name in POSE]
            table |= dict(zip(named, np.asarray(self.before_poses, np.float64).T, strict=True))
        return table | {ENGINE.format(name): tilt for name, tilt in self.engines.items()}


def _kind(values: np.ndarray) -> str:
    return _KINDS.get(values.dtype.kind, "text")


def _texts(values: np.ndarray) -> list[str]:
    kind = _kind(values)
    if kind == "bool":
        return ["true" if value else "false" for value in values]
    if kind == "float":  # repr is the shortest text that reads back as the same number
        return [repr(v) if math.isfinite(v) else "" for v in values.astype(np.float64).tolist()]
    return ["" if value is None else str(value) for value in values.tolist()]


def _column(texts: tuple[str, ...], kind: str) -> np.ndarray:
    if kind == "float":
        return np.array([float(text) if text else math.nan for text in texts], np.float64)
    dtype = {"bool": bool, "int": np.int64, "text": object}[kind]
    return np.array([_READ[kind](text) for text in texts], dtype)


def _plain(value: Any) -> Any:
    """Values of numpy, paths and numbers that are not finite as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
