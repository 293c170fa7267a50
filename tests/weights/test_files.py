"""Safetensors files: the format, its faults, and nothing half-written."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weight_port import WeightError, files

TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]


def example():
    rng = np.random.default_rng(0)
    tensors = {f"{np.dtype(t)}.x": rng.normal(size=(3, 5)).astype(t) for t in TYPES}
    return {**tensors, "empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.5)}


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        assert a[name].tobytes() == b[name].tobytes(), name


def test_round_trip(tmp_path):
    files.write(tmp_path / "w.safetensors", example(), {"who": "wir ä"})
    tensors, metadata = files.read(tmp_path / "w.safetensors")
    assert_same(tensors, example())
    assert metadata == {"who": "wir ä"}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.one_of(
            hnp.arrays(
                st.sampled_from([np.float32, np.float16, np.int8]),
                hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
            )
        ),
        max_size=4,
    )
)
def test_round_trip_of_anything(tmp_path_factory, tensors):
    tensors.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("any") / "w.safetensors"
    files.write(path, tensors)
    assert_same(files.read(path).tensors, tensors)


def test_the_library_reads_ours_and_we_read_the_library(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    tensors = {k: v for k, v in example().items() if v.dtype != ml_dtypes.bfloat16}
    files.write(ours, tensors, {"a": "b"})
    assert_same(safetensors.numpy.load_file(ours), tensors)
    safetensors.numpy.save_file(tensors, theirs, {"a": "b"})
    assert_same(files.read(theirs).tensors, tensors)
    assert files.read(theirs).metadata == {"a": "b"}


def test_bf16_is_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    values = np.array([[1.0, -2.5], [3e38, 1e-30]], ml_dtypes.bfloat16)
    files.write(tmp_path / "w", {"x": values})
    read = safetensors.torch.load_file(tmp_path / "w")["x"]
    assert read.dtype == torch.bfloat16
    np.testing.assert_array_equal(read.float().numpy(), values.astype(np.float32))


def test_bytes_depend_on_the_contents_alone(tmp_path):
    tensors, metadata = example(), {"b": "1", "a": "2", "c": "3"}
    files.write(tmp_path / "1", tensors, metadata)
    files.write(tmp_path / "2", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_every_tensor_is_aligned(tmp_path):
    files.write(tmp_path / "w", {"a": np.zeros(3, np.uint8), "b": np.ones(2, np.float32)})
    assert all(value.flags.aligned for value in files.read(tmp_path / "w").tensors.values())


def test_strided_views_are_written_as_they_look(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    files.write(tmp_path / "w", {"t": x.T, "s": x[::2, 1::3]})
    assert_same(files.read(tmp_path / "w").tensors, {"t": x.T.copy(), "s": x[::2, 1::3].copy()})


def test_reading_maps_and_does_not_load(tmp_path):
    files.write(tmp_path / "w", {"x": np.ones(4, np.float32)})
    view = files.read(tmp_path / "w").tensors["x"]
    assert isinstance(view, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[:-1], "not a whole safetensors file"),
        (lambda data: data[: len(data) // 2], "not a whole safetensors file"),
        (lambda data: data[:12], "not a whole safetensors file"),
        (lambda data: data + b"x", "not a whole safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "not a whole safetensors file"),
        (lambda data: data.replace(b"float32.x", b"float32\xff.", 1), "not a whole safetensors"),
    ],
)
def test_damaged_files_give_one_message_that_names_them(tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    files.write(path, example())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightError, match=rf"damaged\.safetensors: {message}") as raised:
        files.read(path)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(WeightError, match=f"{path.name}: no such file"):
            files.read(path)


def test_type_the_format_has_and_we_have_not(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(WeightError, match="x has type F8_E5M2"):
        files.read(tmp_path / "w")


def test_type_the_format_has_not(tmp_path):
    with pytest.raises(WeightError, match="x has type complex128"):
        files.write(tmp_path / "w", {"x": np.zeros(1, complex)})
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert path.read_bytes() == b"old"


def test_final_name_appears_only_when_complete(tmp_path):
    path = tmp_path / "new" / "w"

    def save(file):
        file.write(b"first")
        assert not path.exists()
        file.write(b" second")

    files.atomically(path, save)
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("w", b"first second")]


def test_reader_of_the_old_file_keeps_the_old_file(tmp_path):
    """A mapped file must not change under its reader: the name moves, the contents stay."""
    path = tmp_path / "w"
    files.write(path, {"x": np.zeros(3, np.float32)})
    old = files.read(path).tensors["x"]
    files.write(path, {"x": np.ones(3, np.float32)})
    assert (old.sum(), files.read(path).tensors["x"].sum()) == (0, 3)
