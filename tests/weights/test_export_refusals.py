"""`dso export` and `dso import`: one clear message and nothing written, whatever goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dso_jax.models import lora
from tests.weights.layout_world import STEM, STEMS, refused, run, tree, write_run
from weight_port import files, layouts

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


@pytest.mark.parametrize("layout", ["dso", "peft", "merged"])
def test_what_was_written_wrongly_is_not_published(world, tmp_path, monkeypatch, capsys, layout):
    """One number of one tensor is enough."""
    original = files.write

    def wrong(path, tensors, metadata=None):
        name = next(name for name in tensors if "to_out" in name and "weight" in name)
        tensors = dict(tensors)
        tensors[name] = np.array(tensors[name])
        tensors[name][1, 1] += 0.125
        original(path, tensors, metadata)

    monkeypatch.setattr(files, "write", wrong)
    out = tmp_path / "out"
    message = refused(capsys, "export", world / "run", "--layout", layout, "--out", out)
    assert "does not fit what was to be written: 1 value" in message
    assert "to_out" in message
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_folded_in_with_another_scale_is_not_published(
    world, tmp_path, monkeypatch, capsys
):
    """Writing and comparing tensors fold with one function; the forward beside it does not."""
    original = lora.merge

    def wrong(params, settings):
        return original(params, dataclasses.replace(settings, alpha=settings.alpha * 1.01))

    monkeypatch.setattr(lora, "merge", wrong)
    words = ("export", world / "run", "--layout", "merged", "--out", tmp_path / "out")
    assert "the adapter folded in is another" in refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_trained_more_than_its_adapter_is_refused(world, tmp_path, capsys):
    sha256 = layouts.sha256(world / f"base/{STEM}.safetensors")
    folder = write_run(tmp_path / "run", sha256, str(world / "base"))
    with (folder / "config.yaml").open("a") as file:
        file.write("trainable: [lora, norm2]\n")
    words = ("export", folder, "--layout", "peft", "--out", tmp_path / "out")
    assert "trained weights of the base too (trainable: lora, norm2)" in refused(capsys, *words)


def test_weights_of_another_number_of_heads_are_refused(world, tmp_path, capsys):
    """The tensors are the same; the model is another."""
    shutil.copytree(world / "merged", tmp_path / "other")
    path = tmp_path / "other" / f"{STEM}.json"
    path.write_text(path.read_text().replace('"num_head_channels": 10', '"num_head_channels": 5'))
    words = ("import", tmp_path / "other", "--base", world / "base", "--out", tmp_path / "out")
    assert re.search(r"num_heads=4.* is a .*num_heads=2", refused(capsys, *words))


def test_an_adapter_that_is_not_finite_is_named(world, tmp_path, capsys):
    folder = write_run(tmp_path / "run", layouts.sha256(world / f"base/{STEM}.safetensors"))
    path = folder / "adapter/adapter_model.safetensors"
    tensors, texts = files.read(path)
    name = "base_model.model.blocks.1.cross_attn.to_q.lora_B.weight"
    files.write(path, {**tensors, name: tensors[name] * np.float32(np.nan)}, texts)
    words = ("--layout", "peft", "--base", world / "base", "--out", tmp_path / "out")
    assert f"{name} holds NaN" in refused(capsys, "export", folder / "adapter", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "nowhere", "--layout", "dso"], "nowhere: no such folder"),
        (["export", "base", "--layout", "dso"], "no adapter-best and no adapter in it"),
        (["export", "run/adapter", "--layout", "dso"], "does not say what its base is"),
        (["export", "run", "--layout", "dso", "--base", "toybox"], "does not fit|with sha256"),
        (["export", "run", "--layout", "dso", "--base", "nowhere"], "nowhere/pipeline.json"),
        (["export", "run", "--layout", "all"], "invalid choice: 'all'"),
        (["export", "run"], "the following arguments are required: --layout"),
        (["import", "absent.safetensors", "--base", "base"], "absent.safetensors: no such file"),
        (["import", "cut.safetensors", "--base", "base"], "cut.safetensors: not a whole"),
        (["import", "empty.safetensors", "--base", "base"], "empty.safetensors: the file is empty"),
        (["import", "int.safetensors", "--base", "base"], r"dtype +blocks\.0.*is int32"),
        (
            ["import", f"base/{STEMS['sparse_structure_decoder']}.safetensors", "--base", "base"],
            "does not fit flow weights",
        ),
        (["import", "other.safetensors", "--base", "base"], "merged onto a base with sha256 0000"),
        (["import", "absent", "--base", "nobody/nothing"], "absent: no such file or folder"),
        (["import", "run", "--base", "base"], "no adapter_config.json"),
        (["import", "dso", "--base", "base"], "it has dso.safetensors, to be named itself"),
        (["import", "peft", "--base", "merged"], "trained on a base with sha256"),
        (["import", "moved.safetensors", "--base", "base"], "does not fit the base .*: 1 value"),
    ],
)
def test_what_cannot_be_used(world, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(world)
    for name in ("base", "run", "peft", "merged", "dso"):
        (tmp_path / name).symlink_to(world / name)
    flow = world / f"base/{STEM}.safetensors"
    tensors = dict(files.read(flow).tensors)
    (tmp_path / "cut.safetensors").write_bytes(flow.read_bytes()[:-9])
    (tmp_path / "empty.safetensors").touch()
    files.write(tmp_path / "other.safetensors", tensors, {"base_sha256": "0000"})
    name = "blocks.0.cross_attn.to_q.weight"
    files.write(tmp_path / "int.safetensors", {**tensors, name: tensors[name].astype(np.int32)})
    dso = dict(files.read(world / "dso/dso.safetensors").tensors)
    files.write(
        tmp_path / "moved.safetensors",
        {**dso, "base_model.model.pos_emb": dso["base_model.model.pos_emb"] + np.float32(1)},
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refused(capsys, *words, "--out", "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_there_is_never_overwritten(world, tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/precious").touch()
    words = ("export", world / "run", "--layout", "peft", "--out")
    assert "is there already" in refused(capsys, *words, tmp_path / "kept")
    assert "no folder" in refused(capsys, *words, tmp_path / "a/b")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "precious"]
    (tmp_path / "empty").mkdir()
    assert run(*words, tmp_path / "empty") == 0


def test_a_full_disk_is_told_and_leaves_nothing(world, tmp_path, capsys):
    """A limit on the size of files fails as a full disk does, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ("export", world / "run", "--layout", "merged", "--out", tmp_path / "out")
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert run(*words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_make_one_whole_folder(world, tmp_path):
    def export(seed: int):
        words = ["export", str(world / "run"), "--layout", "merged", "--out", str(tmp_path / "out")]
        return run(*words)

    with ThreadPoolExecutor(2) as pool:
        codes = sorted(pool.map(export, range(2)))
    assert codes == [0, 2]
    assert tree(tmp_path / "out") == tree(world / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_leaves_nothing_under_the_name(world, tmp_path):
    """Killed as soon as there are weights in the temporary folder, before they are verified."""
    program = "import sys; from dso_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["export", str(world / "run"), "--layout", "merged", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([sys.executable, "-c", program, *words], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out-*.tmp/ckpts/ss_flow*.safetensors")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert run(*words) == 0  # what the killed one left is in nobody's way
    assert tree(tmp_path / "out") == tree(world / "merged")


@pytest.mark.parametrize("half", ["float16", "float32"])
def test_trellis_rounds_on_loading_only_what_is_fp16_anyway(world, tmp_path, half):
    out = tmp_path / "out"
    assert run("export", world / "run", "--layout", "merged", "--half", half, "--out", out) == 0
    original = json.loads((world / "base" / f"{STEM}.json").read_text())
    written = json.loads((out / f"{STEM}.json").read_text())
    if half != "float16":
        original["args"]["use_fp16"] = False
    assert written == original


def test_which_adapter_is_a_question_for_runs(world, tmp_path, capsys):
    words = ("export", world / "run" / "adapter", "--layout", "peft", "--base", world / "base")
    message = refused(capsys, *words, "--adapter", "best", "--out", tmp_path / "out")
    assert "--adapter: " in message and "is one adapter" in message


def test_a_pipeline_that_names_no_file_is_told(world, tmp_path, capsys):
    base = shutil.copytree(world / "base", tmp_path / "base")
    pipeline = json.loads((base / "pipeline.json").read_text())
    pipeline["args"]["models"]["slat_flow_model"] = None
    (base / "pipeline.json").write_text(json.dumps(pipeline))
    words = ("export", world / "run", "--layout", "merged", "--base", base)
    message = refused(capsys, *words, "--out", tmp_path / "out")
    assert "args.models.slat_flow_model is None" in message
