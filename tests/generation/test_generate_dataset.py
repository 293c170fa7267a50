"""A dataset is the same whoever makes it, on however many devices, however often it is killed."""

import dataclasses
import time

import jax
import numpy as np
import pytest

import sim_mjx
from dso_jax.dataset.samples import read_samples
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from dso_jax.generation import dataset as generate_dataset
from dso_jax.generation import generate
from dso_jax.generation import labels as generate_labels
from dso_jax.generation.blocks import Recipe
from dso_jax.generation.dataset import DatasetJob
from dso_jax.generation.generator import Generator
from tests.generation.tiny import Source, Tipping, asked, make_base

FAST = sim_mjx.Protocol.preset("fast")
BASE = make_base()
RECIPE = Recipe(samples=3, seed=7)


@pytest.fixture(autouse=True)
def tipping(monkeypatch):
    monkeypatch.setattr(generate_labels, "DropStream", Tipping)
    monkeypatch.setattr(generate_dataset, "BLOCK", 6)  # two prompts


def make(out, count=7, *, devices=1, recipe=RECIPE, broken=(), batch=4, share=(0, 1), **options):
    generator = Generator.of(BASE, devices=jax.devices()[:devices], batch=batch)
    job = DatasetJob(generator, Source(count, broken), out, FAST, recipe, share=share)
    return job, job.run(**options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_labels, "DropStream", Tipping)
        patch.setattr(generate_dataset, "BLOCK", 6)
        make(out)
    return out


def contents(folder):
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    return {str(name): path.read_bytes() for name, path in found.items() if path.is_file()}


def test_the_folder_holds_what_was_sampled_and_its_label(whole):
    names = [
        *(f"{kind}-{i:05d}.safetensors" for kind in ("conditions", "latents") for i in range(4)),
        *("contact-sheet.png", "meta.json", "samples.parquet"),
    ]
    assert sorted(contents(whole)) == sorted(names)
    dataset = Dataset(whole)
    samples = dataset.samples
    assert samples["object"].tolist() == [f"thing-{i // 3}" for i in range(21)]
    assert samples["seed"][4] == generate.sample_seed("thing-1", 0, 1, 7)
    assert set(samples["protocol"]) == {FAST.hash()} and set(samples["source"]) == {"occupancy"}
    np.testing.assert_array_equal(samples["stable"], samples["tilt_deg"] < 20)
    assert 0 < samples["stable"].sum() < len(dataset)
    prompts = asked(7)
    np.testing.assert_array_equal(dataset.condition(4), prompts.conditions[1])
    again = generate.sample_latents(
        BASE, BASE.flow_params, prompts.conditions[[1]], samples["seed"][[4]], batch=4
    )
    np.testing.assert_allclose(dataset.latent(4), again[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_gives_the_same_folder(whole, tmp_path, devices):
    make(tmp_path, devices=devices)
    assert contents(tmp_path) == contents(whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [1, 4, 6, 8])
def test_a_killed_job_ends_in_the_same_folder(whole, tmp_path, monkeypatch, moment):
    """Killed before or after one of its writes: shards, then lines, and later the labels."""
    steps = iter(range(1, 100))
    writer = generate_dataset.DatasetWriter
    counted = []

    def dying(write):
        def wrapper(*args, **options):
            if next(steps) == moment:
                raise Killed
            return write(*args, **options)

        return wrapper

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("append", "label"):
            patch.setattr(writer, name, dying(getattr(writer, name)))
        make(tmp_path)
    job, report = make(
        tmp_path, progress=lambda stage, count: counted.append(count * (stage == "sample"))
    )
    assert report.complete and job.there + sum(counted) == job.asked == 21
    assert contents(tmp_path) == contents(whole)


def killed_before_labels(folder, monkeypatch):
    """A job that dies as soon as the first labels would be written."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(DatasetJob, "_label", die)
        make(folder)


def test_what_waited_for_labels_is_not_sampled_again(whole, tmp_path, monkeypatch):
    killed_before_labels(tmp_path, monkeypatch)
    waiting = sorted(tmp_path.glob("unlabelled-*"))
    held = sum(len(read_samples(path)["view"]) for path in waiting)
    assert held and set(read_samples(waiting[0])["status"]) == {"invalid"}
    sampled = []
    latents = Generator.latents

    def counted(self, conditions, draws, groups, progress):
        sampled.append(len(draws))
        return latents(self, conditions, draws, groups, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "latents", counted)
        make(tmp_path)
    assert sum(sampled) == 21 - held
    assert contents(tmp_path) == contents(whole)


def test_what_gets_its_labels_while_the_job_looks_is_not_made_again(whole, tmp_path, monkeypatch):
    killed_before_labels(tmp_path, monkeypatch)
    unlabelled, calls = generate_dataset.DatasetWriter.unlabelled, []

    def late(writer):
        calls.append(unlabelled(writer))
        end = time.monotonic() + 20
        while len(calls) > 1 and unlabelled(writer) and time.monotonic() < end:
            time.sleep(0.01)
        return calls[0] if len(calls) == 1 else unlabelled(writer)

    monkeypatch.setattr(generate_dataset.DatasetWriter, "unlabelled", late)
    make(tmp_path)
    assert calls[0] and contents(tmp_path) == contents(whole)


def test_two_jobs_share_the_work_and_the_last_puts_the_table_together(whole, tmp_path):
    first, done = make(tmp_path, share=(0, 2))
    assert (first.asked, first.there, done.complete) == (12, 0, False)
    assert len(Dataset(tmp_path)) == 12 and not (tmp_path / "samples.parquet").exists()
    second, done = make(tmp_path, share=(1, 2))
    assert (second.asked, second.there, done.complete) == (9, 0, True)
    assert contents(tmp_path) == contents(whole)
    again, done = make(tmp_path)
    assert again.there == again.asked == 21 and done.complete


def test_a_job_beside_another_makes_what_is_missing(whole, tmp_path):
    """As if a second job began when the first had but made its plan."""
    generator = Generator.of(BASE, devices=jax.devices()[:1], batch=4)
    idle = DatasetJob(generator, Source(7), tmp_path, FAST, RECIPE)
    make(tmp_path)
    assert contents(tmp_path) == contents(whole)
    assert idle.run().complete
    assert contents(tmp_path) == contents(whole)


def test_prompts_that_cannot_be_used_are_named_and_left_out(whole, tmp_path, caplog):
    _, report = make(tmp_path / "some", broken=[1, 4, 5])
    assert report.complete
    assert report.problems == [f"{row}.png: broken" for row in (1, 4, 5)]
    assert "4.png: broken" in caplog.text
    dataset, full = Dataset(tmp_path / "some"), Dataset(whole)
    assert np.unique(dataset.samples["object"]).tolist() == [f"thing-{i}" for i in (0, 2, 3, 6)]
    rows = np.flatnonzero(full.samples["object"] == "thing-3")
    mine = np.flatnonzero(dataset.samples["object"] == "thing-3")
    for row, own in zip(rows.tolist(), mine.tolist(), strict=True):
        np.testing.assert_allclose(dataset.latent(own), full.latent(row), rtol=1e-5, atol=1e-5)
    job, _ = make(tmp_path / "some", broken=[1, 4, 5])  # a block of which nothing is left is done
    assert job.there == job.asked
    with pytest.raises(UsageError, match=r"--strict: 1\.png: broken"):
        make(tmp_path / "strict", broken=[1], strict=True)
    with pytest.raises(UsageError, match=r"no prompt could be used, first 0\.png: broken"):
        make(tmp_path / "none", count=2, broken=[0, 1])


def test_a_folder_of_other_settings_is_refused(whole, tmp_path):
    before = contents(whole)
    changes: tuple[tuple[dict, str], ...] = (
        ({"recipe": dataclasses.replace(RECIPE, seed=8)}, "seed is 7, this run has 8"),
        ({"recipe": dataclasses.replace(RECIPE, first=3)}, r"samples is \[0, 3\]"),
        ({"recipe": dataclasses.replace(RECIPE, store="images")}, "image_shape is None"),
        ({"count": 8}, "prompts is"),
        ({"batch": 5}, "batch is 4, this run has 5"),
    )
    for change, message in changes:
        with pytest.raises(UsageError, match=message):
            make(whole, **change)
    assert contents(whole) == before


def test_pictures_may_be_kept_in_place_of_conditions(whole, tmp_path):
    make(tmp_path, recipe=dataclasses.replace(RECIPE, store="images"))
    dataset = Dataset(tmp_path, images=True)
    assert not list(tmp_path.glob("conditions-*"))
    (shown,) = Source(7).load([np.arange(7)])
    np.testing.assert_array_equal(dataset.condition(4), shown.images[1])
    np.testing.assert_array_equal(dataset.latent(4), Dataset(whole).latent(4))


def test_samples_that_overflow_are_left_out(tmp_path, monkeypatch):
    latents = Generator.latents

    def overflowing(self, conditions, draws, groups, progress):
        found = latents(self, conditions, draws, groups, progress).copy()
        found[4] = np.inf
        return found

    monkeypatch.setattr(Generator, "latents", overflowing)
    _, report = make(tmp_path, count=2)
    assert report.problems == ["sample thing-1:0:1: the latent is not finite"]
    assert Dataset(tmp_path).samples["sample"].tolist() == [0, 1, 2, 0, 2]


def test_meshes_are_those_of_the_solids_that_were_dropped(tmp_path):
    make(tmp_path, count=2, meshes=True)
    names = sorted(str(p.relative_to(tmp_path / "meshes")) for p in tmp_path.rglob("*.glb"))
    usable = Dataset(tmp_path).usable
    assert len(names) == usable.sum() and names[0].startswith("objects/thing-0/000_00")


def test_an_error_while_labelling_ends_the_job(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DatasetJob, "_label", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path)
