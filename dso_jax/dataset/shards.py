"""Safetensors shards read by row, without loading them.

A shard of a full-size dataset is gigabytes, of which one training batch needs a few rows. The
header of a safetensors file (eight bytes of length, then JSON) gives the place of each tensor, so
a row is one read at a known place. The file is opened for that read alone: a full-size dataset has
thousands of shards, more than a process may hold open, and a memory map holds its file too (and
kills the process if the file is cut short behind its back). The header also says how long the file
must be: a copy that broke off is found before training, not in its third hour.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from dso_jax.atomic import write_atomic
from dso_jax.errors import UsageError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
PIXELS = {"U8": np.dtype(np.uint8)}
# Exponent bits that are all set in an infinity or a NaN, by dtype, with the integer to view it as.
_EXPONENT = {
    "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}
_PIECE = 2**18  # elements


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write `tensors` as one safetensors file, atomically."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary))


def all_finite(values: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; on 16-bit floats far faster than `isfinite`."""
    integer, exponent = _EXPONENT[values.dtype.name]
    bits = np.ascontiguousarray(values).reshape(-1).view(integer)
    # Piece by piece: the intermediate arrays stay in the processor's cache.
    pieces = (bits[start : start + _PIECE] for start in range(0, bits.size, _PIECE))
    return not any(bool(np.any((piece & exponent) == exponent)) for piece in pieces)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tensor of a safetensors file; its first axis is the row.

    Attributes:
        path: the file.
        offset: byte at which the tensor starts.
        shape: (N, ...) of the tensor.
        dtype: of its elements.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def open(
        cls,
        path: Path,
        name: str,
        row_shape: tuple[int, ...],
        dtypes: Mapping[str, np.dtype] = DTYPES,
    ) -> Shard:
        """Find tensor `name` of `path`, whose rows must have `row_shape` and one of `dtypes`.

        Raises:
            UsageError: the file is missing, is cut short, is no safetensors file, lacks the tensor,
                or holds it in another shape or type.
        """
        header, start, size = _read_header(path)
        if name not in header:
            names = ", ".join(sorted(key for key in header if key != "__metadata__")) or "nothing"
            raise UsageError(f"{path}: no tensor {name!r} (it holds {names})")
        entry = header[name]
        if entry["dtype"] not in dtypes:
            known = ", ".join(dtypes)
            raise UsageError(f"{path}: {name} is {entry['dtype']}, expected one of {known}")
        if len(entry["shape"]) != 1 + len(row_shape) or tuple(entry["shape"][1:]) != row_shape:
            want = ", ".join(["rows", *map(str, row_shape)])
            raise UsageError(f"{path}: {name} has shape {tuple(entry['shape'])}, expected ({want})")
        begin, end = entry["data_offsets"]
        if start + end > size:
            raise UsageError(
                f"{path}: cut short at {size} bytes, {name} ends at byte {start + end}"
            )
        return cls(path, start + begin, tuple(entry["shape"]), dtypes[entry["dtype"]])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def row(self, index: int) -> np.ndarray:
        """Row `index`, read from the file.

        Raises:
            UsageError: the file has become shorter, or is gone.
        """
        values = np.empty(self.shape[1:], self.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + index * values.nbytes)
                got = file.readinto(values.reshape(-1).view(np.uint8).data)
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no such file any more") from None
        if got != values.nbytes:
            raise UsageError(f"{self.path}: has become shorter, row {index} is cut off")
        return values


def _read_header(path: Path) -> tuple[dict, int, int]:
    """The header of a safetensors file, the byte at which its data start, and the file's size."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UsageError(f"{path}: cut short or no safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UsageError(f"{path}: not a safetensors file ({error})") from None
    return header, 8 + length, size
