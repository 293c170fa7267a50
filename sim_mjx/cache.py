"""Bodies kept on disk, so that a second protocol over the same meshes costs no preparation.

An entry is keyed by the file's bytes and by what of the protocol makes the body, not by the whole
protocol: another timestep, engine or threshold finds the bodies of the first run. Files that gave
no body are kept with their reason. Whatever is not a whole entry of this version is made again.

Legend: K support points and V polygon entries, without padding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import zlib

import numpy as np

from sim_mjx.bodies import HullPolygons, Provenance, RigidBody
from sim_mjx.buckets import padded
from sim_mjx.protocol import Protocol

_log = logging.getLogger(__name__)

# The fields of a protocol that decide the body of a mesh.
BODY_FIELDS = ("density", "inertia", "scaling", "up", "up_turn")
# Bump when code changes bodies, their margins or what is kept of them although no field changed.
_REVISION = 2
_MAGIC = b"dso-body 1 "
# Packages whose arithmetic is in a body.
_PACKAGES = ("numpy", "scipy", "trimesh")
_ARRAYS = {
    "mass": "<f8",
    "com": "<f8",
    "inertia": "<f8",
    "inertia_quat": "<f8",
    "points": "<f4",
    "count": "<i4",
    "normals": "<f4",
    "contacts": "<u2",  # a bucket has at most 16384 points
}


class CacheError(ValueError):
    """The folder of a cache cannot be used."""


class BodyCache:
    """Entries for one set of body fields in a folder that any number of processes may share."""

    def __init__(self, folder: pathlib.Path, protocol: Protocol):
        self._folder = folder
        self._base = json.dumps(
            {
                "revision": _REVISION,
                "packages": [importlib.metadata.version(name) for name in _PACKAGES],
                "fields": {name: getattr(protocol, name) for name in BODY_FIELDS},
            }
        )

    def load(self, kind: str, digest: str, source: str) -> RigidBody | tuple[str, str] | None:
        """The body of a file, or its reason and message, or None if it is not there.

        Args:
            kind: the file's format.
            digest: sha256 of its bytes.
            source: where the file is now; the entry may be of a copy elsewhere.
        """
        try:
            entry = self._place(kind, digest).read_bytes()
        except OSError:
            return None
        return _unpack(entry, source)

    def store(
        self, kind: str, digest: str, source: str, outcome: RigidBody | tuple[str, str]
    ) -> None:
        """Writes an entry, or lets it be: a full disk must not end a job."""
        place = self._place(kind, digest)
        part = place.with_suffix(f".{os.getpid()}.part")
        try:
            place.parent.mkdir(exist_ok=True)
            part.write_bytes(_pack(outcome, source))
            os.replace(part, place)
        except OSError as error:
            _log.warning("%s: body not kept: %s", place, error)
            part.unlink(missing_ok=True)

    def _place(self, kind: str, digest: str) -> pathlib.Path:
        name = hashlib.sha256(f"{self._base} {kind} {digest}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:40]}.body"


def check_folder(folder: pathlib.Path) -> None:
    """Makes the folder if it is not there.

    Raises:
        CacheError: it is no folder, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cache {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"cache {folder}: not writable")


def _pack(outcome: RigidBody | tuple[str, str], source: str) -> bytes:
    """Checksum, a line of JSON, and the arrays without their padding."""
    if isinstance(outcome, tuple):
        reason, message = outcome
        head: dict = {"reason": reason, "message": message.removeprefix(f"{source}: ")}
        return _seal(json.dumps(head).encode() + b"\n")
    table, (origin,) = outcome.polygons, outcome.provenance
    assert table is not None
    points = 1 + np.count_nonzero(table.start[0])  # padding starts where point 0 does
    entries = int(table.count[0, :points].sum())
    arrays = {
        "mass": outcome.mass,
        "com": outcome.com[0],
        "inertia": outcome.inertia[0],
        "inertia_quat": outcome.inertia_quat[0],
        "points": outcome.points[0, :points],
        "count": table.count[0, :points],
        "normals": table.normals[0, :entries],
        "contacts": table.contacts[0, :entries],
    }
    head = {
        "provenance": {**dataclasses.asdict(origin), "source": ""},
        "bucket": [outcome.points.shape[1], table.normals.shape[1], table.window],
        "shapes": {name: array.shape for name, array in arrays.items()},
    }
    data = b"".join(np.asarray(array, _ARRAYS[name]).tobytes() for name, array in arrays.items())
    return _seal(json.dumps(head).encode() + b"\n" + data)


def _seal(content: bytes) -> bytes:
    return _MAGIC + b"%08x\n" % zlib.crc32(content) + content


def _unpack(entry: bytes, source: str) -> RigidBody | tuple[str, str] | None:
    seal, _, content = entry.partition(b"\n")
    if seal + b"\n" != _seal(content)[: len(seal) + 1]:
        return None
    line, _, data = content.partition(b"\n")
    head = json.loads(line)
    if "reason" in head:
        return head["reason"], f"{source}: {head['message']}"
    arrays, at = {}, 0
    for name, dtype in _ARRAYS.items():
        shape = head["shapes"][name]
        arrays[name] = np.ndarray(shape, dtype, data, at).copy()
        at += arrays[name].nbytes
    points, entries, window = head["bucket"]
    count = arrays["count"]
    return RigidBody(
        points=padded(arrays["points"], points, arrays["points"][0], np.float32),
        mass=arrays["mass"],
        com=arrays["com"][None],
        inertia=arrays["inertia"][None],
        inertia_quat=arrays["inertia_quat"][None],
        polygons=HullPolygons(
            start=padded(np.cumsum(count) - count, points, 0, np.int32),
            count=padded(count, points, count[0], np.int32),
            normals=padded(arrays["normals"], entries, 0.0, np.float32),
            contacts=padded(arrays["contacts"], entries, 0, np.uint16),
            window=window,
        ),
        provenance=(Provenance(**{**head["provenance"], "source": source}),),
    )
