"""Torch's own files (`.pt`, `.pth`), read without running what strangers put into them.

Such a file is a pickle, and a pickle is a program. Everything here goes through the loader that
torch restricts to tensors in plain containers (`weights_only=True`), so a file that wants anything
else is refused. This is the only module that imports torch, and only when it is called.
"""

from __future__ import annotations

import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from weight_port import files
from weight_port.errors import WeightError
from weight_port.files import atomically

logger = logging.getLogger(__name__)

SUFFIXES = (".pt", ".pth", ".bin")
# Where training scripts put the weights when the file holds more than them.
NESTED = ("state_dict", "model_state_dict", "model")
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ZIP = b"PK\x03\x04"
# What torch's readers raise on bytes that are no whole file; found by damaging files of each kind.
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TorchMissing(WeightError):
    """Torch is not installed: no file of this kind can be read or written."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Maps the state dict of a `.pt` or `.pth` file.

    A checkpoint with the weights under one of `NESTED` gives those, and the rest of it (epoch,
    optimizer, ...) is left out.

    Args:
      path: written by `torch.save`, in today's format or the one before torch 1.6.

    Returns:
      Name -> read-only array in the stored type. Today's format is mapped: nothing is read until
      it is used. bf16 comes as `ml_dtypes.bfloat16`, neither copied nor widened.

    Raises:
      WeightError: torch is not installed (TorchMissing), no such file, not a whole torch file, a
        pickle that wants more than tensors, or no mapping of names to tensors.
    """
    path = Path(path)
    content = _load(path, mmap=True)
    if not isinstance(content, Mapping):
        raise WeightError(f"{path}: holds {_kind(content)}, expected a state dict")
    torch = _torch(path)
    keys = [key for key in NESTED if isinstance(content.get(key), Mapping)]
    if len(keys) > 1:
        raise WeightError(f"{path}: holds several state dicts ({', '.join(keys)}), expected one")
    if keys:
        left_out = ", ".join(sorted(str(key) for key in content if key not in keys))
        content = content[keys[0]]
        logger.info("%s: %s is read%s", path, keys[0], left_out and f", not {left_out}")
    if not content:
        raise WeightError(f"{path}: the state dict is empty")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightError(f"{path}: {name!r} is {_kind(value)}, expected a tensor with a name")
    return {name: _array(path, name, value) for name, value in content.items()}


def read_any(path: Path) -> files.TensorFile:
    """Tensors and texts of a file of torch's or of safetensors, mapped; torch's have no texts.

    Raises:
      WeightError: no such file, or it cannot be read as what its suffix says.
    """
    if path.suffix in SUFFIXES:
        return files.TensorFile(read(path), {"format": "pt"})
    return files.read(path)


def read_tensor(path: str | Path) -> np.ndarray:
    """Reads a file that holds a single tensor.

    Returns:
      Read-only array in the stored type; bf16 comes as `ml_dtypes.bfloat16`.

    Raises:
      WeightError: as `read`, or the file holds something other than one tensor.
    """
    path = Path(path)
    content = _load(path, mmap=False)
    if not isinstance(content, _torch(path).Tensor):
        raise WeightError(f"{path}: holds {_kind(content)}, expected one tensor")
    return _array(path, "the tensor", content)


def write_tensor(path: str | Path, array: np.ndarray) -> None:
    """Writes one tensor as `torch.save` does, under its final name only once it is complete.

    The bytes depend on the array alone.

    Raises:
      WeightError: torch is not installed (TorchMissing), or has no such type.
    """
    torch = _torch(Path(path))
    copy = np.array(array, order="C")  # torch wants memory that it may write to
    try:
        if copy.dtype == _BFLOAT16:
            tensor = torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(copy)
    except TypeError as error:
        raise WeightError(f"{path}: torch has no type {copy.dtype}") from error

    # Into an open file: by name, torch would write the (temporary) name into the file.
    def save(file: BinaryIO) -> None:
        torch.save(tensor, file)

    atomically(path, save)


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise TorchMissing(
            f"{path}: a torch file needs torch, which is not installed; "
            "pip install 'dso-jax[torch]', or convert the file to safetensors"
        ) from error
    return torch


def _load(path: Path, *, mmap: bool) -> Any:
    """What a file holds, from torch's restricted loader."""
    if not path.is_file():
        raise WeightError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if not start:
        raise WeightError(f"{path}: the file is empty")
    if start == _ZIP:
        _check_zip(path)
    torch = _torch(path)
    try:
        return torch.load(
            str(path), weights_only=True, map_location="cpu", mmap=mmap and start == _ZIP
        )
    except _DAMAGED as error:
        text = str(error)
        if wanted := re.search(r"GLOBAL (\S+)|whose module (\S+) is blocked", text):
            name = wanted[1] or wanted[2]
            raise WeightError(
                f"{path}: refused, because loading it would use {name}: only tensors in plain "
                "containers are read, so that a file cannot run a program"
            ) from error
        raise WeightError(
            f"{path}: not a whole torch file that holds tensors alone "
            f"({type(error).__name__}: {_reason(text)})"
        ) from error


def _check_zip(path: Path) -> None:
    """Refuses what torch would only tell of in passing: half a file, or a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise WeightError(f"{path}: cut short, or not a torch file ({error})") from error
    files = {name.partition("/")[2] for name in names}
    if "constants.pkl" in files:
        raise WeightError(f"{path}: refused, it holds a TorchScript program, not only tensors")
    if "data.pkl" not in files:
        raise WeightError(f"{path}: a zip archive, but not one that torch.save wrote")


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """The memory of a tensor as a read-only array of the same type."""
    torch = _torch(path)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise WeightError(f"{path}: {name} is {kind}, expected a plain dense tensor")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        array = tensor.view(torch.int16).numpy().view(_BFLOAT16)
    elif tensor.is_complex():
        raise WeightError(f"{path}: {name} has type {tensor.dtype}, which is not supported")
    else:
        try:
            array = tensor.numpy()
        except TypeError as error:
            raise WeightError(
                f"{path}: {name} has type {tensor.dtype}, which is not supported"
            ) from error
    array.flags.writeable = False
    return array


def _reason(text: str) -> str:
    """The first sentence of torch's message, without its advice to trust the file."""
    own = text.rpartition("WeightsUnpickler error: ")[2].strip()
    return own.partition("\n")[0].partition(". ")[0]


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        names = ", ".join(repr(key) for key in list(value)[:4])
        return f"a mapping with {names or 'nothing'}"
    return f"a {type(value).__name__}"
