"""Which meshes an evaluation is about, what each of them shows, and what it is compared with.

A name such as `chair-003_001.glb` is DSO's: object `chair`, picture 003, sample 1. Any other file
is an object of its own, named by its path below the folder that was given, so that two folders of
one layout can be compared file by file.
"""

from __future__ import annotations

import collections
import csv
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dso_jax.errors import UsageError
from sim_mjx.label import LabelError, expand_paths

_DSO_NAME = re.compile(r"(?P<object>.+)-(?P<view>\d+)_(?P<sample>\d{3})")
# Names of the columns of a file of categories.
_CATEGORY_COLUMNS = ("object", "category")

Key = tuple[str, str, int]  # object, view, sample


@dataclass(frozen=True)
class Item:
    """One mesh.

    Attributes:
        path: the file.
        object: what it shows; samples of one object succeed and fail together.
        view: the picture that it was made from, empty where unknown.
        sample: number of the sample.
        category: of the object, empty where unknown.
        truth: the true object's file, if there is one.
        before: the same sample's file before post-training, if there is one.
    """

    path: pathlib.Path
    object: str
    view: str = ""
    sample: int = 0
    category: str = ""
    truth: pathlib.Path | None = None
    before: pathlib.Path | None = None

    @property
    def key(self) -> Key:
        return self.object, self.view, self.sample


def collect(
    patterns: Sequence[str],
    *,
    truth: str | None = None,
    before: str | None = None,
    categories: str | None = None,
) -> list[Item]:
    """The meshes of files, folders and globs, each with what is known of it.

    Args:
        patterns: what to judge.
        truth: folder of true objects, found by object: `chair.glb`, or `sofas/chair.obj`.
        before: folder, file or glob of the same samples before post-training.
        categories: CSV file with the columns object and category; by default an object's category
            is the subfolder that it lies in.

    Raises:
        UsageError: a path names nothing, two files are one sample, or a comparison finds no pair.
    """
    named = _table(categories) if categories is not None else {}
    items = _items(patterns)
    if truth is not None:
        truths = _by_name(truth)
        items = [_replaced(item, truth=_truth(item, truths)) for item in items]
        if not any(item.truth for item in items):
            raise UsageError(
                f"--truth {truth}: none of {len(items)} meshes has a true object there; expected "
                f"files named as the objects, such as {items[0].object}.glb"
            )
    if before is not None:
        others = {item.key: item.path for item in _items([before])}
        items = [_replaced(item, before=others.get(item.key)) for item in items]
        if not any(item.before for item in items):
            raise UsageError(
                f"--before {before}: none of {len(items)} meshes has its counterpart there; "
                f"expected the same names, such as {items[0].path.name}"
            )
    if named:
        items = [_replaced(item, category=named.get(item.object, "")) for item in items]
        if not any(item.category for item in items):
            raise UsageError(
                f"--categories {categories}: none of its objects is among the meshes, such as "
                f"{items[0].object}"
            )
    return items


def _replaced(item: Item, **changes) -> Item:
    return Item(**{**item.__dict__, **changes})


def _items(patterns: Sequence[str]) -> list[Item]:
    items: dict[pathlib.Path, Item] = {}
    for pattern in patterns:
        try:
            files = expand_paths([pattern])
        except LabelError as error:
            raise UsageError(str(error)) from error
        root = _root(pattern, files)
        for path in files:
            items.setdefault(path, _item(path, path.relative_to(root)))
    _refuse_doubles(items.values())
    return list(items.values())


def _root(pattern: str, files: Sequence[pathlib.Path]) -> pathlib.Path:
    """The folder below which files have their names."""
    if pathlib.Path(pattern).is_dir():
        return pathlib.Path(pattern)
    parents = [path.parent for path in files]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common


def _item(path: pathlib.Path, name: pathlib.Path) -> Item:
    category = name.parts[0] if len(name.parts) > 1 else ""
    if found := _DSO_NAME.fullmatch(name.stem):
        return Item(path, found["object"], found["view"], int(found["sample"]), category)
    return Item(path, name.with_suffix("").as_posix(), category=category)


def _refuse_doubles(items: Iterable[Item]) -> None:
    first: dict[Key, Item] = {}
    for item in items:
        other = first.setdefault(item.key, item)
        if other is not item:
            raise UsageError(
                f"{other.path} and {item.path} are both sample {item.sample} of {item.object}; "
                "give one of them"
            )


def _by_name(folder: str) -> dict[str, list[pathlib.Path]]:
    """Files by their path below the folder without suffix, and by their bare name."""
    try:
        files = expand_paths([folder])
    except LabelError as error:
        raise UsageError(f"--truth {error}") from error
    root, found = _root(folder, files), collections.defaultdict(list)
    for path in files:
        name = path.relative_to(root).with_suffix("")
        for key in {name.as_posix(), name.name}:
            found[key].append(path)
    return found


def _truth(item: Item, truths: Mapping[str, list[pathlib.Path]]) -> pathlib.Path | None:
    found = truths.get(item.object) or truths.get(pathlib.PurePath(item.object).name, [])
    if len(found) > 1:
        raise UsageError(
            f"--truth: {found[0]} and {found[1]} are both named as the object {item.object}"
        )
    return found[0] if found else None


def _table(path: str) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--categories {path}: cannot be read: {error}") from error
    missing = [name for name in _CATEGORY_COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise UsageError(
            f"--categories {path}: expected a CSV file with the columns "
            f"{' and '.join(_CATEGORY_COLUMNS)}; {' and '.join(missing)} not found"
        )
    return {row["object"]: row["category"] or "" for row in rows}
