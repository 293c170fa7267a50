"""`python -m weight_port`: plain conversion, and one clear message where it cannot be."""

from __future__ import annotations

import errno
import subprocess
import sys

import numpy as np
import pytest

from dso_jax.models import DINOv2Config
from tests.weights.layout_world import FLOW, random_state, same_bytes
from weight_port import files, layouts
from weight_port.__main__ import main


def run(*words, to=None) -> int:
    return main([*map(str, words), *(["--to", to] if to else [])])


def test_every_way_there_and_back(dso_file, base_file, tmp_path, capsys):
    """dso -> peft -> dso, dso -> base, dso -> merged -> base."""
    assert run(dso_file, tmp_path / "peft", to="peft") == 0
    again = tmp_path / "again.safetensors"
    assert run(tmp_path / "peft", again, "--base", base_file, to="dso") == 0
    assert again.read_bytes() == dso_file.read_bytes()
    assert run(dso_file, tmp_path / "base.safetensors", to="base") == 0
    assert (tmp_path / "base.safetensors").read_bytes() == base_file.read_bytes()
    assert run(dso_file, tmp_path / "m.safetensors", "--base", base_file, to="merged") == 0
    assert run(tmp_path / "m.safetensors", tmp_path / "m2.safetensors") == 0
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "m2.safetensors").read_bytes()
    assert "written as merged, and read back" in capsys.readouterr().out


def test_types_are_kept_or_as_asked(tmp_path):
    state = {n: value.astype(np.float32) for n, value in random_state("flow", FLOW).items()}
    files.write(tmp_path / "wide.safetensors", state)
    assert run(tmp_path / "wide.safetensors", tmp_path / "kept.safetensors") == 0
    same_bytes(dict(files.read(tmp_path / "kept.safetensors").tensors), state)
    released = tmp_path / "released.safetensors"
    assert run(tmp_path / "wide.safetensors", released, "--half", "float16") == 0
    same_bytes(dict(files.read(released).tensors), random_state("flow", FLOW))


def test_torch_files_become_safetensors(tmp_path):
    torch = pytest.importorskip("torch")
    state = random_state("flow", FLOW)
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, tmp_path / "f.pt")
    assert run(tmp_path / "f.pt", tmp_path / "f.safetensors") == 0
    same_bytes(dict(files.read(tmp_path / "f.safetensors").tensors), state)


def test_dinov2_goes_from_one_set_of_names_to_the_other(tmp_path):
    config = DINOv2Config(width=64, num_blocks=2, num_heads=1, patch_size=2, image_size=4)
    state = random_state("dinov2", config)
    files.write(tmp_path / "hub.safetensors", state, {"format": "pt"})
    assert run(tmp_path / "hub.safetensors", tmp_path / "hf.safetensors", to="dinov2_hf") == 0
    assert "embeddings.cls_token" in files.read(tmp_path / "hf.safetensors").tensors
    assert run(tmp_path / "hf.safetensors", tmp_path / "again.safetensors", to="dinov2") == 0
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "hub.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.safetensors", "out.safetensors"], "absent.safetensors: no such file"),
        (["empty.safetensors", "out.safetensors"], "empty.safetensors: the file is empty"),
        (["cut.safetensors", "out.safetensors"], "cut.safetensors: not a whole safetensors file"),
        (["absent.pt", "out.safetensors"], "absent.pt: no such file"),
        (["flow.safetensors", "out.pt"], "out.pt: base is written as a .safetensors file"),
        (["flow.safetensors", "flow.safetensors"], "is there already"),
        (["flow.safetensors", "no/out.safetensors"], "no folder"),
        (["flow.safetensors", "out.safetensors", "--to", "dso"], "dso needs an adapter"),
        (["dso.safetensors", "out.safetensors", "--to", "peft"], "peft is written as a folder"),
        (["dso.safetensors", "out.safetensors", "--alpha", "3"], "states alpha 5, not 3"),
        (["dso.safetensors", "out.safetensors", "--base", "other.safetensors"], "with sha256"),
        (["dso.safetensors", "out.safetensors", "--base", "dso.safetensors"], "expected the flow"),
        (["dso.safetensors", "out.safetensors", "--base", "run/adapter"], "expected the flow"),
        (["run/adapter", "out.safetensors", "--to", "dso"], "needs the base"),
        (["run", "out.safetensors"], "no adapter_config.json; expected a state dict"),
    ],
)
def test_what_cannot_be_converted(
    dso_file, base_file, tmp_path, monkeypatch, capsys, words, message
):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "cut.safetensors").write_bytes(base_file.read_bytes()[:-7])
    files.write(tmp_path / "other.safetensors", random_state("flow", FLOW, seed=7))
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("to", ["base", "peft"])
def test_a_full_disk_is_told_and_leaves_nothing(dso_file, tmp_path, monkeypatch, capsys, to):
    out = tmp_path / ("adapter" if to == "peft" else "out.safetensors")
    before = sorted(tmp_path.iterdir())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert run(dso_file, out, to=to) == 2
    assert f"error: {out}: No space left on device; nothing" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_typing_mistakes_leave_by_exit_code_2(capsys):
    for words in (["one"], ["a", "b", "--to", "nowhere"], ["a", "b", "--alpha", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_the_module_runs_without_torch_and_helps():
    program = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help'];"
        "runpy.run_module('weight_port', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for layout in layouts.Layout.__args__:
        assert f"\n  {layout}" in done.stdout
