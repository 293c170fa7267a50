"""`dso export` and `dso import`: whole folders, verified, or one message and nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dso_jax import pretrained
from dso_jax.cli import exporting, main
from tests.weights.layout_world import (
    FLOW,
    STEM,
    STEMS,
    write_pipeline,
    write_run,
)
from weight_port import WeightError, files, layouts

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pipeline folder, a run that started from it, and one export in every layout."""
    folder = tmp_path_factory.mktemp("world")
    base = write_pipeline(folder / "base")
    run = write_run(
        folder / "run", layouts.sha256(base / f"{STEM}.safetensors"), str(folder / "base")
    )
    for layout in ("dso", "peft", "merged"):
        assert (
            main.main(["export", str(run), "--layout", layout, "--out", str(folder / layout)]) == 0
        )
    return folder


def run(*words) -> int:
    return main.main([str(word) for word in words])


def refused(capsys, *words) -> str:
    """The one message of a command that cannot be used."""
    capsys.readouterr()
    assert run(*words) == 2
    errors = capsys.readouterr().err
    message = errors[errors.index("error: ") :]
    assert "Traceback" not in errors
    return message


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_merged_is_the_base_but_for_the_adapted_weights(world):
    base, merged = tree(world / "base"), tree(world / "merged")
    changed = {"pipeline.json", f"{STEM}.safetensors"}
    assert {name: merged[name] for name in base if name not in changed} == {
        name: contents for name, contents in base.items() if name not in changed
    }
    assert set(merged) - set(base) == {"README.md"}
    assert json.loads(merged["pipeline.json"]) == json.loads(base["pipeline.json"])
    old, new = (
        files.read(world / name / f"{STEM}.safetensors").tensors for name in ("base", "merged")
    )
    assert {n: (t.shape, t.dtype) for n, t in new.items()} == {
        n: (t.shape, t.dtype) for n, t in old.items()
    }
    differ = {name for name in old if not np.array_equal(old[name], new[name])}
    assert differ == {name for name in old if name.endswith("weight") and ".to_" in name}


def test_merged_serves_as_a_base(world):
    base = pretrained.load(str(world / "merged"))
    assert base.flow_config == FLOW
    assert base.sha256 == layouts.sha256(world / "merged" / f"{STEM}.safetensors")


def test_the_best_adapter_is_exported_unless_asked_otherwise(world, tmp_path):
    assert layouts.read(world / "peft").metadata["step"] == "200"
    run("export", world / "run", "--layout", "peft", "--adapter", "last", "--out", tmp_path / "x")
    for name in ADAPTER_FILES:
        assert tree(world / "peft")[name] == tree(world / "run/adapter-best")[name]
        assert tree(tmp_path / "x")[name] == tree(world / "run/adapter")[name]


def test_all_layouts_come_back_through_import(world, tmp_path, capsys):
    base = ("--base", world / "base")
    assert run("import", world / "dso/dso.safetensors", *base, "--out", tmp_path / "from-dso") == 0
    assert run("import", world / "peft", *base, "--out", tmp_path / "from-peft") == 0
    assert run("import", world / "merged", *base, "--out", tmp_path / "from-merged") == 0
    for name in ADAPTER_FILES:
        assert tree(tmp_path / "from-dso")[name] == tree(world / "run/adapter-best")[name]
        assert tree(tmp_path / "from-peft")[name] == tree(world / "run/adapter-best")[name]
    back, merged = tree(tmp_path / "from-merged"), tree(world / "merged")
    assert back == {name: text for name, text in merged.items() if name != "README.md"}
    assert capsys.readouterr().out.count("matched") == 3
    # ... and what was imported is exported to the same bytes.
    words = ("--layout", "dso", *base, "--out", tmp_path / "dso")
    assert run("export", tmp_path / "from-dso", *words) == 0
    assert tree(tmp_path / "dso")["dso.safetensors"] == tree(world / "dso")["dso.safetensors"]


def test_a_strangers_dso_checkpoint_is_imported(world, tmp_path, capsys):
    """Without header, and with alpha as DSO trains; its base is compared number by number."""
    tensors = files.read(world / "dso/dso.safetensors").tensors
    files.write(tmp_path / "dro-4000iters.safetensors", tensors)
    words = ("import", tmp_path / "dro-4000iters.safetensors", "--base", world / "base")
    assert run(*words, "--out", tmp_path / "a") == 0
    settings = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (3, 6)
    recorded = layouts.sha256(world / f"base/{STEM}.safetensors")
    assert layouts.read(tmp_path / "a").base_sha256 == recorded
    assert run(*words, "--alpha", "4.5", "--out", tmp_path / "b") == 0
    settings = json.loads((tmp_path / "b/adapter_config.json").read_text())
    assert settings["lora_alpha"] == 4.5


def test_merged_weights_alone_become_a_pipeline_folder_with_links(world, tmp_path):
    weights = world / "merged" / f"{STEM}.safetensors"
    words = ("--base", world / "base", "--others", "link", "--out", tmp_path / "tuned")
    assert run("import", weights, *words) == 0
    assert tree(tmp_path / "tuned") == {
        name: text for name, text in tree(world / "merged").items() if name != "README.md"
    }
    links = {path.name for path in (tmp_path / "tuned/ckpts").iterdir() if path.is_symlink()}
    assert len(links) == 6
    assert not [name for name in links if name.startswith("ss_flow")]
    pretrained.load(str(tmp_path / "tuned"))


def test_verification_prints_what_it_found(world, tmp_path, capsys):
    for layout, count in (("dso", 69), ("peft", 20), ("merged", 49)):
        out = tmp_path / layout
        assert run("export", world / "run", "--layout", layout, "--out", out) == 0
        text = capsys.readouterr().out
        assert f"matched {count} of {count} tensors; largest difference of one forward " in text
        if layout != "merged":
            assert "largest difference of one forward 0, of values" in text


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


def test_another_scale_in_what_was_written_is_seen(world):
    """The tensors are the same; one forward is not."""
    adapter = layouts.read(world / "run/adapter")
    base = exporting.load_base(str(world / "base"))
    params = exporting._with(base, adapter)
    expected = exporting.verify.velocity(FLOW, params, adapter.lora)
    other = exporting.verify.velocity(FLOW, params, exporting.lora.LoRAConfig(3, 5.1))
    with pytest.raises(WeightError, match="one forward of what was written differs by"):
        exporting._exact(Path("x"), 1, other, expected)


def test_a_large_grid_is_verified_on_its_corner(monkeypatch):
    """The same as a model of that size with the positions of the corner, in every axis."""
    base = exporting.load_base("toybox")  # 4^3 tokens, patch 2
    monkeypatch.setattr(exporting.verify, "MAX_EDGE", 3)
    found = exporting.verify.velocity(base.config, base.params)
    assert found.shape == (1, 8, 6, 6, 6)
    tokens = [16 * x + 4 * y + z for x, y, z in np.ndindex(3, 3, 3)]
    params = {**base.params, "pos_emb": base.params["pos_emb"][np.array(tokens)]}
    smaller = dataclasses.replace(base.config, resolution=6)
    np.testing.assert_array_equal(found, exporting.verify.velocity(smaller, params))


def test_a_run_that_trained_more_than_its_adapter_is_refused(world, tmp_path, capsys):
    sha256 = layouts.sha256(world / f"base/{STEM}.safetensors")
    folder = write_run(tmp_path / "run", sha256, str(world / "base"))
    with (folder / "config.yaml").open("a") as file:
        file.write("trainable: [lora, norm2]\n")
    words = ("export", folder, "--layout", "peft", "--out", tmp_path / "out")
    assert "trained weights of the base too (trainable: lora, norm2)" in refused(capsys, *words)


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
        (["import", "run", "--base", "base"], "no adapter_config.json"),
        (["import", "peft", "--base", "merged"], "trained on a base with sha256"),
        (["import", "moved.safetensors", "--base", "base"], "does not fit the base .*: 1 value"),
    ],
)
def test_what_cannot_be_used(world, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(world)
    for name in ("base", "run", "peft", "merged"):
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
        return main.main(words)

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


def test_the_toybox_goes_through_every_layout(tmp_path, capsys):
    """The embedded generator, whose tensors are all fp16."""
    base = exporting.load_base("toybox")
    run_folder = write_run(tmp_path / "run", base.sha256, config=base.config)
    for layout in ("merged", "dso", "peft"):
        out = ("--out", tmp_path / layout)
        assert run("export", run_folder, "--layout", layout, *out) == 0
    kept = ("--base", "toybox", "--out")
    assert run("import", tmp_path / "dso/dso.safetensors", *kept, tmp_path / "a") == 0
    assert run("import", tmp_path / "merged", *kept, tmp_path / "b") == 0
    assert (
        tree(tmp_path / "a")[ADAPTER_FILES[0]]
        == tree(run_folder / "adapter-best")[ADAPTER_FILES[0]]
    )
    dumped = layouts.read(tmp_path / "dso/dso.safetensors")
    assert dumped.params["pos_emb"].dtype == np.float16
    assert pretrained.load(str(tmp_path / "b")).flow_config == base.config
    text = capsys.readouterr().out
    assert "matched 109 of 109" in text
    assert "matched 159 of 159" in text


def test_every_help_teaches(capsys):
    for command in ("export", "import"):
        with pytest.raises(SystemExit) as stop:
            main.main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for word in ("peft", "merged", "DSO", "--base", "exit codes", "examples"):
            assert word.lower() in text.lower()
