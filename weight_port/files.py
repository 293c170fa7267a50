"""Safetensors files: mapped when read, written whole or not at all, the same bytes every time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from weight_port.errors import WeightError

_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _TYPES.items()}


class TensorFile(NamedTuple):
    """Contents of a safetensors file.

    Attributes:
      tensors: name -> read-only view of the mapped file; nothing is read until it is used.
      metadata: the texts of the header.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: str | Path) -> TensorFile:
    """Maps a safetensors file.

    Raises:
      WeightError: no such file, not a safetensors file, truncated, or a tensor type that is
        neither a float, an integer nor a boolean that numpy knows.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise WeightError(f"{path}: the file is empty")
    try:
        # The library checks that the header is sound and that the tensors cover the file.
        with safetensors.safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise WeightError(f"{path}: not a whole safetensors file ({error})") from error
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            raise WeightError(f"{path}: {name} has type {entry['dtype']}, which is not supported")
        begin, end = entry["data_offsets"]
        view = data[start + begin : start + end].view(_TYPES[entry["dtype"]])
        tensors[name] = view.reshape(entry["shape"])
    return TensorFile(tensors, metadata)


def write(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file under its final name only once it is complete.

    The bytes depend on the arguments alone: names and metadata are sorted (wider types first, as
    the format's own library does, so that every tensor is aligned).

    Raises:
      WeightError: a tensor whose type the format does not have.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    for name, array in arrays.items():
        if array.dtype not in _CODES:
            raise WeightError(f"{path}: {name} has type {array.dtype}, which is not supported")
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def save(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)

    atomically(path, save)


def atomically(path: str | Path, save: Callable[[BinaryIO], object]) -> None:
    """Lets `save` write a temporary file beside `path`, then gives it its name.

    After an error or a kill there is the old file or none, never a part of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
