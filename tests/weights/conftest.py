"""A base file, an adapter on it, and both as a DSO checkpoint."""

from __future__ import annotations

import pytest

from tests.weights.layout_world import FLOW, STEM, random_state, run, write_pipeline, write_run
from weight_port import files, layouts, layouts_write


@pytest.fixture
def base_file(tmp_path):
    files.write(tmp_path / "flow.safetensors", random_state("flow", FLOW), {"format": "pt"})
    return tmp_path / "flow.safetensors"


@pytest.fixture
def adapted(base_file, tmp_path):
    """Base and adapter as one checkpoint."""
    base = layouts.read(base_file)
    run = write_run(tmp_path / "run", layouts.sha256(base_file))
    return layouts.with_base(layouts.read(run / "adapter"), base)


@pytest.fixture
def dso_file(adapted, tmp_path):
    layouts_write.write(tmp_path / "dso.safetensors", adapted, "dso")
    return tmp_path / "dso.safetensors"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A pipeline folder, a run that started from it, and one export in every layout."""
    folder = tmp_path_factory.mktemp("world")
    base = write_pipeline(folder / "base")
    sha256 = layouts.sha256(base / f"{STEM}.safetensors")
    trained = write_run(folder / "run", sha256, str(folder / "base"))
    for layout in ("dso", "peft", "merged"):
        assert run("export", trained, "--layout", layout, "--out", folder / layout) == 0
    return folder
