"""Names of pictures, and what is read of them block by block."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dso_jax.errors import UsageError
from dso_jax.generation.prompt_sources import FileSource, ToyboxSource, fingerprint, name_files
from dso_jax.generation.prompts import toybox_prompts


def names(*files, by_folder=False):
    objects, views = name_files([Path(file) for file in files], by_folder=by_folder)
    return list(zip(objects.tolist(), views.tolist(), strict=True))


def test_each_file_shows_an_object_named_by_its_path():
    assert names("p/a.png", "p/b.jpg") == [("a", 0), ("b", 0)]
    assert names("p/x/a.png", "p/y/a.png") == [("x/a", 0), ("y/a", 0)]
    # DSO's layout has one folder above an object.
    assert names("p/x/1/2/a.png", "p/y/b.png") == [("x/1_2_a", 0), ("y/b", 0)]
    assert names("p/only.png") == [("only", 0)]


def test_files_of_a_folder_may_be_views_of_one_object():
    files = ("p/x/004.png", "p/x/001.png", "p/y/left.png", "p/y/back.png")
    assert names(*files, by_folder=True) == [("x", 4), ("x", 1), ("y", 1), ("y", 0)]
    assert names("p/x/a.png", "p/x/b.png", by_folder=True) == [("x", 0), ("x", 1)]
    assert names("p/a.png", "p/x/b.png", by_folder=True) == [("p", 0), ("p/x", 0)]


def test_two_files_of_one_name_are_refused():
    with pytest.raises(UsageError, match=r"p/a\.png: would have the same name, a, as p/a\.jpg"):
        names("p/a.jpg", "p/a.png")
    with pytest.raises(UsageError, match="the same name, x"):
        names("p/x/1.png", "p/x/01.png", "p/y/1.png", by_folder=True)


def numbered(path: Path) -> np.ndarray:
    if "bad" in path.name:
        raise UsageError(f"{path}: damaged")
    return np.full((2, 2, 3), int(path.stem), np.uint8)


def make(files):
    return FileSource(
        [Path(file) for file in files],
        numbered,
        lambda pixels, groups: pixels.mean((1, 2)).astype(np.float32),
        image_shape=(2, 2, 3),
        condition_shape=(3,),
    )


def test_blocks_come_in_order_without_what_cannot_be_used():
    source = make([f"p/{i}.png" if i % 4 else f"p/bad{i}.png" for i in range(10)])
    blocks = [np.array([0, 1, 2]), np.array([8]), np.array([5, 6, 7])]
    loaded = list(source.load(blocks))
    assert [one.rows.tolist() for one in loaded] == [[1, 2], [], [5, 6, 7]]
    assert [one.images[:, 0, 0, 0].tolist() for one in loaded] == [[1, 2], [], [5, 6, 7]]
    assert loaded[1].problems == ("p/bad8.png: damaged",)
    assert source.conditions(loaded[0].images, [2]).tolist() == [[1.0] * 3, [2.0] * 3]


def test_blocks_are_asked_for_when_their_turn_comes():
    source, asked = make([f"p/{i}.png" for i in range(200)]), itertools.count()
    loading = source.load(np.array([next(asked)]) for _ in range(200))
    assert next(loading).rows.tolist() == [0]
    assert next(asked) < 150  # a few a core, not all
    loading.close()


def test_the_toybox_draws_a_block_as_it_draws_all():
    source, whole = ToyboxSource("preference", 6), toybox_prompts("preference", 6)
    assert source.objects.tolist() == whole.objects.tolist()
    (loaded,) = source.load([np.array([2, 3])])
    np.testing.assert_array_equal(loaded.images, whole.images[2:4])
    np.testing.assert_array_equal(source.conditions(loaded.images, [2]), whole.conditions[2:4])
    apart = source.conditions(loaded.images, [1, 1])
    np.testing.assert_allclose(apart, whole.conditions[2:4], rtol=1e-5, atol=1e-5)


def test_a_fingerprint_names_objects_views_and_order():
    found = [fingerprint(make(files)) for files in (["p/1.png", "p/2.png"], ["p/2.png", "p/1.png"])]
    assert found[0] != found[1]
    assert found[0] == fingerprint(make(["q/r/1.png", "q/r/2.png"]))
