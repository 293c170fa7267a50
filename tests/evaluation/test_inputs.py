"""What files show, and what they are compared with."""

from __future__ import annotations

import pytest

from dso_jax.errors import UsageError
from dso_jax.evaluation.inputs import collect


@pytest.fixture
def folders(tmp_path):
    """DSO's layout: samples tuned and base, true objects, and other meshes in categories."""
    for name in (
        *(f"tuned/chair-{view:03d}_{n:03d}.glb" for view in (0, 3) for n in (0, 1)),
        "tuned/la-mp-001_000.glb",
        *("base/chair-003_001.glb", "base/la-mp-001_000.glb"),
        *("true/chair.glb", "true/more/la-mp.obj"),
        *("sorted/lamps/a.obj", "sorted/lamps/b.stl", "sorted/tables/a.obj"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_names_of_dso_say_object_view_and_sample(folders):
    items = collect([str(folders / "tuned")])
    assert [item.key for item in items] == [
        *(("chair", "000", 0), ("chair", "000", 1), ("chair", "003", 0), ("chair", "003", 1)),
        ("la-mp", "001", 0),
    ]
    assert {item.category for item in items} == {""}


def test_other_names_are_objects_and_their_folders_categories(folders):
    items = collect([str(folders / "sorted")])
    assert [(item.object, item.category) for item in items] == [
        ("lamps/a", "lamps"),
        ("lamps/b", "lamps"),
        ("tables/a", "tables"),
    ]
    assert [item.object for item in collect([str(folders / "sorted" / "*" / "a.obj")])] == [
        "lamps/a",
        "tables/a",
    ]


def test_truth_by_object_and_before_by_name(folders):
    items = collect(
        [str(folders / "tuned")], truth=str(folders / "true"), before=str(folders / "base")
    )
    assert [item.truth and item.truth.name for item in items] == [*["chair.glb"] * 4, "la-mp.obj"]
    assert [item.before and item.before.name for item in items] == [
        *(None, None, None),
        *("chair-003_001.glb", "la-mp-001_000.glb"),
    ]


def test_categories_from_a_table(folders):
    table = folders / "categories.csv"
    table.write_text("object,category\nchair,seats\nother,none\n", "utf-8")
    items = collect([str(folders / "tuned")], categories=str(table))
    assert [item.category for item in items] == ["seats"] * 4 + [""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": "sorted"}, "--truth .*none of 5 meshes has a true object there.*chair.glb"),
        ({"truth": "absent"}, "--truth .*absent: no such file"),
        ({"before": "sorted"}, "--before .*none of 5 meshes has its counterpart"),
        ({"categories": "absent.csv"}, "--categories .*absent.csv: cannot be read"),
        ({"categories": "bad.csv"}, "columns object and category; category not found"),
        ({"categories": "foreign.csv"}, "none of its objects is among the meshes, such as chair"),
    ],
)
def test_a_comparison_without_a_pair_is_refused(folders, options, message):
    (folders / "bad.csv").write_text("object,kind\nchair,a\n", "utf-8")
    (folders / "foreign.csv").write_text("object,category\nsofa,a\n", "utf-8")
    found = {name: str(folders / value) for name, value in options.items()}
    with pytest.raises(UsageError, match=message):
        collect([str(folders / "tuned")], **found)


def test_two_files_of_one_sample_are_refused(folders):
    (folders / "tuned" / "chair-003_001.obj").write_bytes(b"")
    with pytest.raises(UsageError, match="are both sample 1 of chair"):
        collect([str(folders / "tuned")])
    (folders / "true" / "chair.obj").write_bytes(b"")
    with pytest.raises(UsageError, match="are both named as the object chair"):
        collect([str(folders / "tuned" / "chair-003_000.glb")], truth=str(folders / "true"))
