"""`dso export` and `dso import`: whole folders that other programs take, and verified."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dso_jax import pretrained
from dso_jax.cli import adapters, exporting
from tests.weights.layout_world import FLOW, STEM, run, tree, write_run
from weight_port import WeightError, files, layouts

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


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


def test_an_adapter_is_found_by_any_of_its_names(world):
    for name, found in {
        "peft": "peft",
        "peft/adapter_model.safetensors": "peft",
        "dso": "dso/dso.safetensors",
        "dso/dso.safetensors": "dso/dso.safetensors",
        "run": "run/adapter-best",
    }.items():
        assert adapters.find(world / name) == world / found


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


def test_models_of_a_hub_repository_are_fetched(world, tmp_path, monkeypatch):
    """Each file on its own, as the hub's cache has them."""
    cache = tmp_path / "cache"

    def fetch(repo, name, *, offline=None):
        assert repo == "someone/generator"
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(world / "base" / name, cache / name)
        return cache / name

    monkeypatch.setattr(pretrained.hub, "fetch", fetch)
    words = ("--layout", "merged", "--base", "someone/generator", "--out", tmp_path / "out")
    assert run("export", world / "run", *words) == 0
    found, expected = tree(tmp_path / "out"), tree(world / "merged")
    assert b"someone/generator" in found.pop("README.md")
    assert found == {name: text for name, text in expected.items() if name != "README.md"}


def test_a_model_that_the_base_lacks_is_said_and_left_out(world, tmp_path, caplog):
    base = tmp_path / "base"
    shutil.copytree(world / "base", base)
    for path in base.glob("ckpts/slat*"):
        path.unlink()
    words = ("--layout", "merged", "--base", base, "--out", tmp_path / "out")
    assert run("export", world / "run", *words) == 0
    assert "no ckpts/slat_dec_mesh, which pipeline.json names; left as it is" in caplog.text
    assert tree(tmp_path / "out")["pipeline.json"] == tree(world / "merged")["pipeline.json"]


def test_models_outside_the_base_are_copied_into_the_folder(world, tmp_path):
    """A name that leads out of the base must not lead out of what is written."""
    base = tmp_path / "in" / "base"
    shutil.copytree(world / "base", base)
    name = "ss_dec_conv3d_16l8_fp16"
    for path in base.glob(f"ckpts/{name}.*"):
        path.rename(base.parent / path.name)
    path = base / "pipeline.json"
    path.write_text(path.read_text().replace(f"ckpts/{name}", f"../{name}"))
    out = tmp_path / "out"
    assert run("export", world / "run", "--layout", "merged", "--base", base, "--out", out) == 0
    assert tree(out).keys() == tree(world / "merged").keys()
    assert tree(out)["pipeline.json"] == tree(world / "merged")["pipeline.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_links_hold_from_anywhere(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    words = ("--layout", "merged", "--base", "base", "--others", "link", "--out", tmp_path / "x")
    assert run("export", "run", *words) == 0
    monkeypatch.chdir(tmp_path)
    assert tree(tmp_path / "x").keys() == tree(world / "merged").keys()


def test_an_adapter_that_rounding_swamps_is_said(world, tmp_path, caplog):
    adapter = world / "run/adapter"
    shutil.copytree(adapter, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors, texts = files.read(path)
    faint = {n: t * np.float32(1e-4 if "lora_B" in n else 1) for n, t in tensors.items()}
    files.write(path, faint, texts)
    for name, source in (("strong", adapter), ("faint", tmp_path / "adapter")):
        words = ("--layout", "merged", "--base", world / "base", "--out", tmp_path / name)
        caplog.clear()
        assert run("export", source, *words) == 0
        assert ("rounding to float16 changes the output by" in caplog.text) == (name == "faint")


def test_verification_prints_what_it_found(world, tmp_path, capsys):
    for layout, count in (("dso", 69), ("peft", 20), ("merged", 49)):
        out = tmp_path / layout
        assert run("export", world / "run", "--layout", layout, "--out", out) == 0
        text = capsys.readouterr().out
        assert f"matched {count} of {count} tensors; largest difference of one forward " in text
        if layout != "merged":
            assert "largest difference of one forward 0, of values" in text


def test_another_scale_in_what_was_written_is_seen(world):
    """The tensors are the same; one forward is not."""
    adapter = layouts.read(world / "run/adapter")
    base = exporting.load_base(str(world / "base"))
    params = exporting.with_adapter(base, adapter)
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
            run(command, "--help")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for word in ("peft", "merged", "DSO", "--base", "exit codes", "examples"):
            assert word.lower() in text.lower()
