"""Torch files: the same bits in and out, nothing executed, one clear message for each bad file."""

from __future__ import annotations

import ast
import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from weight_port import WeightError, torch_files


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=["zip", "before 1.6"])
def save(request, torch, tmp_path):
    """Saves an object in one of the two formats and returns the path."""

    def write(content, name="w.pt"):
        zipped = request.param == "zip"
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        return tmp_path / name

    return write


def example(torch):
    """One tensor of every type, a view with strides, a scalar, an empty one, a parameter."""
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8)
    tensors = {f"of.{str(kind).partition('.')[2]}": (8 * x).to(kind) for kind in types}
    tensors |= {"bool": x > 0, "strided": x[1:, ::2].T, "scalar": torch.tensor(2.5)}
    return tensors | {"empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(x.bfloat16())}


def bits(torch, tensor) -> bytes:
    """The tensor's bytes, by torch alone."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("nest", [None, *torch_files.NESTED])
def test_a_state_dict_comes_bit_for_bit(torch, save, nest):
    state = example(torch)
    content = OrderedDict(state) if nest is None else {nest: state, "epoch": 3, "args": {"lr": 0.1}}
    read = torch_files.read(save(content))
    assert list(read) == list(state)
    for name, array in read.items():
        kind = str(state[name].dtype).partition(".")[2]
        assert (array.shape, array.dtype.name) == (tuple(state[name].shape), kind), name
        assert np.ascontiguousarray(array).tobytes() == bits(torch, state[name]), name
        assert not array.flags.writeable


def test_a_file_is_mapped_not_loaded(torch, tmp_path):
    """Pages of the file change under the array, so nobody has copied or widened it."""
    torch.save({"x": torch.ones(4096, dtype=torch.bfloat16)}, tmp_path / "w.pt")
    array = torch_files.read(tmp_path / "w.pt")["x"]
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data/0"))
    content = (tmp_path / "w.pt").read_bytes()
    place = content.index(np.ones(4096, ml_dtypes.bfloat16).tobytes(), entry.header_offset)
    with (tmp_path / "w.pt").open("rb+") as file:
        file.seek(place)
        file.write(np.full(1, 7, ml_dtypes.bfloat16).tobytes())
    assert array[0] == 7 and array[1] == 1


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.int8, np.bool_])
def test_a_tensor_goes_out_and_comes_back(torch, tmp_path, dtype):
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(dtype).transpose(2, 0, 1)
    array.flags.writeable = False
    torch_files.write_tensor(tmp_path / "new" / "x.pt", array)
    loaded = torch.load(tmp_path / "new" / "x.pt", weights_only=True)
    assert str(loaded.dtype).partition(".")[2] == np.dtype(dtype).name
    assert loaded.is_contiguous() and loaded.untyped_storage().nbytes() == array.nbytes
    assert bits(torch, loaded) == array.tobytes()
    back = torch_files.read_tensor(tmp_path / "new" / "x.pt")
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.pt"]


def test_the_same_array_gives_the_same_file(torch, tmp_path):
    for name in ("a.pt", "b.pt"):
        torch_files.write_tensor(tmp_path / name, np.arange(6, dtype=ml_dtypes.bfloat16))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_type_that_torch_lacks_is_refused(torch, tmp_path):
    with pytest.raises(WeightError, match=r"x.pt: torch has no type <U1"):
        torch_files.write_tensor(tmp_path / "x.pt", np.array(["a"]))
    assert not list(tmp_path.iterdir())


class Program:
    """Pickled, it writes a file as soon as somebody loads it without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("read", [torch_files.read, torch_files.read_tensor])
def test_a_program_in_the_file_does_not_run(torch, save, tmp_path, read):
    trace = tmp_path / "it-ran"
    path = save({"w": torch.ones(2), "payload": Program(trace)})
    with pytest.raises(WeightError, match=r"w.pt: refused, because loading it would use .*exec"):
        read(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the same bytes do run where nobody forbids it
    assert trace.exists()


@pytest.mark.parametrize("read", [torch_files.read, torch_files.read_tensor])
def test_a_bare_pickle_does_not_run(torch, tmp_path, read):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Program(tmp_path / "it-ran"), protocol=2))
    with pytest.raises(WeightError, match=r"w.pth: (refused|not a whole torch file)"):
        read(tmp_path / "w.pth")
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda torch: torch.ones(2), "holds a Tensor, expected a state dict"),
        (lambda torch: [torch.ones(2)], "holds a list, expected a state dict"),
        (lambda torch: {}, "the state dict is empty"),
        (lambda torch: {"a": torch.ones(2), "b": 3}, "'b' is a int, expected a tensor"),
        (lambda torch: {0: torch.ones(2)}, "0 is a Tensor, expected a tensor with a name"),
        (lambda torch: {"net": {"a": torch.ones(2)}}, "'net' is a mapping with 'a', expected"),
        (lambda torch: {"model": {}, "state_dict": {}}, "several state dicts .state_dict, model"),
        (lambda torch: {"c": torch.ones(2, dtype=torch.complex64)}, "c has type torch.complex64"),
        (lambda torch: {"s": torch.eye(2).to_sparse()}, "s is torch.sparse_coo on cpu, expected"),
    ],
)
def test_what_is_no_state_dict_is_named(torch, save, content, message):
    with pytest.raises(WeightError, match=rf"w.pt: .*{message}"):
        torch_files.read(save(content(torch)))


def test_what_is_no_tensor_is_named(torch, save):
    path = save({"a": torch.ones(2)})
    with pytest.raises(WeightError, match=r"w.pt: holds a mapping with 'a', expected one tensor"):
        torch_files.read_tensor(path)


@pytest.mark.parametrize("read", [torch_files.read, torch_files.read_tensor])
def test_a_file_cut_anywhere_is_refused(torch, save, read):
    path = save(torch.arange(64.0) if read is torch_files.read_tensor else {"a": torch.ones(64)})
    whole = path.read_bytes()
    read(path)
    for size in range(1, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightError, match=r"w.pt: (cut short|refused|not a whole)"):
            read(path)


def test_damage_never_gives_another_error(torch, save):
    """Bytes changed at random are refused, or (in the numbers themselves) go unseen."""
    path = save({"a.weight": torch.ones(3, 4), "b": torch.arange(5)})
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(min(len(whole), 500))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            torch_files.read(path)
        except WeightError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
        except UserWarning as warning:  # not raised outside tests; the file is read then
            assert "pickle protocol" in str(warning)
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x93NUMPY\x01\x00", "not a whole torch file"),
        (b"<!DOCTYPE html><html>404</html>", "not a whole torch file"),
    ],
)
def test_other_files_are_refused(torch, tmp_path, content, message):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightError, match=rf"w.pt: {message}"):
        torch_files.read(tmp_path / "w.pt")


def test_other_archives_are_refused(torch, tmp_path):
    for name, message in (("t/constants.pkl", "TorchScript"), ("x.npy", "not one that torch.save")):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, b"")
        (tmp_path / "w.pt").write_bytes(buffer.getvalue())
        with pytest.raises(WeightError, match=message):
            torch_files.read(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightError, match=r"none.pt: no such file"):
        torch_files.read(tmp_path / "none.pt")


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"\x80\x02")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now raises ImportError
    for call in (
        lambda: torch_files.read(tmp_path / "w.pt"),
        lambda: torch_files.write_tensor(tmp_path / "new.pt", np.ones(2)),
    ):
        with pytest.raises(WeightError, match=r"pt: .* torch, which is not installed; pip install"):
            call()


def test_no_other_module_imports_torch():
    """With the test below: without a torch file, no command of ours ever imports torch."""
    root = Path(torch_files.__file__).resolve().parents[1]
    importers = set()
    for package in ("dso_jax", "sim_mjx", "weight_port"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if {name.partition(".")[0] for name in names} & {"torch", "peft", "transformers"}:
                    importers.add(path.name)
    assert importers == {"torch_files.py"}


def test_importing_the_module_does_not_import_torch():
    program = "import sys, weight_port.torch_files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
