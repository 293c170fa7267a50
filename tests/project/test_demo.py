"""The demo's order, records, resumption and outputs, with work that takes no time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dso_jax import demo
from dso_jax.cli import demo as command
from dso_jax.errors import UsageError
from dso_jax.report import summary
from dso_jax.stages import Stages
from tests.project import example


class FakeWork:
    """Writes what the real work writes, and remembers what it was asked for."""

    def __init__(self, rate: float = 1e-4) -> None:
        self.rate, self.calls = rate, []
        self.fail_at: tuple | None = None

    def _call(self, *call) -> None:
        self.calls.append(call)
        if call == self.fail_at:
            raise KeyboardInterrupt

    def describe(self):
        return {name: example.provenance()[name] for name in ("base", "protocol", "device")}

    def training(self, method, seed):
        return {"rate": self.rate, "method": method, "seed": seed}

    def sample(self, seed, out):
        self._call("sample", seed)
        out.mkdir(parents=True)

    def train(self, method, seed, data, out):
        assert data.is_dir()
        (out / "adapter").mkdir(parents=True, exist_ok=True)
        (out / "half").touch()
        self._call("train", method, seed)
        (out / "metrics.jsonl").write_text('{"step": 0, "loss": 0.69}\n{"step": 9, "loss": 0.6}\n')

    def evaluate(self, seed, adapter):
        method = "base" if adapter is None else adapter.parent.name
        self._call("evaluate", method, seed)
        return example.columns(method, seed) | example.shapes()


ONE_SEED = [
    ("sample", 0),
    ("evaluate", "base", 0),
    ("train", "sft", 0),
    ("evaluate", "sft", 0),
    ("train", "dpo", 0),
    ("evaluate", "dpo", 0),
    ("train", "dro", 0),
    ("evaluate", "dro", 0),
]


def test_one_seed_runs_every_stage_once_and_writes_everything(tmp_path):
    work = FakeWork()
    results = demo.run(demo.DemoConfig(out=tmp_path, exhibits=1), work, "dso demo")
    assert work.calls == ONE_SEED
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert list(stored["methods"]) == list(example.METHODS)
    assert stored["methods"]["dro"]["difference_points"]["mean"] > 10
    assert stored["protocol"]["hash"] == "0123456789ab"
    assert stored["versions"]["mujoco"] == "4.0.0"
    assert len(stored["seconds"]) == 8
    assert set(stored["methods"]["dpo"]["seconds"]) == {"train", "evaluate"}
    assert "dso demo" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "dpo" / "adapter").is_dir()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_run_does_only_the_report(tmp_path):
    config = demo.DemoConfig(out=tmp_path, exhibits=1)
    first = demo.run(config, FakeWork())
    again = FakeWork()
    second = demo.run(config, again)
    assert again.calls == []
    assert second["methods"] == first["methods"]
    assert second["seconds"] == first["seconds"]


def test_an_interrupted_run_goes_on_in_the_folder_of_the_unfinished_stage(tmp_path):
    config = demo.DemoConfig(out=tmp_path, exhibits=1)
    killed = FakeWork()
    killed.fail_at = ("train", "dpo", 0)
    with pytest.raises(KeyboardInterrupt):
        demo.run(config, killed)
    assert not (tmp_path / "summary.json").exists()
    (tmp_path / "dpo" / "checkpoint").touch()
    resumed = FakeWork()
    demo.run(config, resumed)
    assert resumed.calls == ONE_SEED[4:]
    assert (tmp_path / "dpo" / "checkpoint").exists()


def test_another_configuration_repeats_what_depends_on_it(tmp_path):
    config = demo.DemoConfig(out=tmp_path, exhibits=1)
    demo.run(config, FakeWork())
    stale = tmp_path / "sft" / "checkpoint"
    stale.touch()
    changed = FakeWork(rate=2e-4)
    demo.run(config, changed)
    assert changed.calls == ONE_SEED[2:]
    assert not stale.exists()


def test_fewer_heldout_samples_repeat_the_evaluations_alone(tmp_path):
    demo.run(demo.DemoConfig(out=tmp_path, exhibits=1), FakeWork())
    work = FakeWork()
    demo.run(demo.DemoConfig(out=tmp_path, heldout_samples=2, exhibits=1), work)
    assert {call[0] for call in work.calls} == {"evaluate"}


def test_seeds_have_their_own_data_adapters_and_rows(tmp_path, capsys):
    work = FakeWork()
    results = demo.run(demo.DemoConfig(seeds=2, out=tmp_path, exhibits=1), work)
    assert ("train", "dro", 1) in work.calls
    assert (tmp_path / "seed-1" / "dro" / "adapter").is_dir()
    assert len(results["runs"]) == 8
    shown = command.table(results)
    assert [column.header for column in shown.columns][:2] == ["seed", "method"]
    assert list(shown.columns[0].cells) == ["0"] * 4 + ["1"] * 4 + ["mean"] * 4


def test_more_seeds_build_on_the_first(tmp_path):
    demo.run(demo.DemoConfig(out=tmp_path, exhibits=1), FakeWork())
    work = FakeWork()
    demo.run(demo.DemoConfig(seeds=2, out=tmp_path, exhibits=1), work)
    assert {call[-1] for call in work.calls} == {1}


def test_the_gallery_takes_the_first_of_each_kind_one_an_object():
    base = {
        "object": np.array([0, 0, 1, 2, 2, 3, 4]),
        "status": np.array(["rest", "rest", "rest", "rest", "rest", "invalid", "rest"]),
        "stable": np.array([True, False, False, True, False, False, True]),
    }
    assert demo.pick(base, 3) == [1, 2, 3]
    assert demo.pick(base, 1) == [1]
    assert demo.pick(base, 4) == [1, 2, 4, 6]
    assert demo.pick(base, 99) == [1, 2, 4, 6]
    assert demo.pick(base | {"stable": base["stable"] | True}, 3) == [0, 2, 3]


def test_columns_of_objects_survive_the_file(tmp_path):
    columns = example.columns("dpo") | {"status": np.array(["rest"] * 96, dtype=object)}
    demo.save(tmp_path / "e.npz", columns)
    stored = demo.load(tmp_path / "e.npz", leave_out=("seed",))
    assert summary.stands(stored).sum() == columns["stable"].sum()
    assert set(stored) == set(columns) - {"seed"}


@pytest.mark.parametrize("changes", [{"seeds": 0}, {"preference_samples": 1}, {"steps": 0}])
def test_unusable_amounts_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        demo.DemoConfig(**changes)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file"):
        Stages(tmp_path / "file", total=1)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(UsageError, match=r"stages\.json"):
        Stages(tmp_path, total=1)


def test_failed_guards_are_named():
    base = example.columns("base")
    wide = example.columns("dpo") | {"footprint": base["footprint"] * 2}
    methods = {"base": summary.summarise(base, base), "dpo": summary.summarise(wide, base)}
    assert command.failed_guards(methods) == ["DPO: footprint area 0.020 -> 0.040"]
