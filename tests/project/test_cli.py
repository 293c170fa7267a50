"""The `dso` command: what it takes before JAX starts, what it refuses, how it ends."""

from __future__ import annotations

import json
import types

import pytest

from dso_jax.cli import doctor, environment, main
from dso_jax.errors import UsageError


def taken(line: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    rest = environment.take_options(line.split(), environ)
    return rest, environ


def test_devices_and_memory_are_taken_anywhere_on_the_line():
    rest, environ = taken("train --devices cpu:3 --a 1 --memory-fraction=0.5 b", XLA_FLAGS="--x")
    assert rest == ["train", "--a", "1", "b"]
    assert environ["JAX_PLATFORMS"] == "cpu"
    assert environ["XLA_FLAGS"] == "--x --xla_force_host_platform_device_count=3"
    assert environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


def test_gpu_numbers_choose_visible_devices(monkeypatch):
    monkeypatch.setattr(environment, "cuda_plugins", lambda: ["jax_cuda13_plugin"])
    _, environ = taken("train --devices 0,2")
    assert (environ["JAX_PLATFORMS"], environ["CUDA_VISIBLE_DEVICES"]) == ("cuda", "0,2")


@pytest.mark.parametrize(
    "line",
    [
        "--devices",
        "--devices=",
        "--devices --json",
        "--devices tpu",
        "--devices cpu:0",
        "--memory-fraction 0",
        "--memory-fraction 1.5",
        "--memory-fraction half",
    ],
)
def test_a_value_that_cannot_be_used_is_named(line):
    with pytest.raises(UsageError, match=line.split()[0].split("=")[0]):
        taken(line)


def test_a_gpu_without_the_cuda_plugin_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(environment, "cuda_plugins", list)
    for value in ("gpu", "0"):
        with pytest.raises(UsageError, match=r"\[cuda13\]"):
            taken(f"--devices {value}")


def test_the_compilation_cache_is_on_unless_the_user_says_where():
    assert taken("", XDG_CACHE_HOME="cache")[1]["JAX_COMPILATION_CACHE_DIR"].startswith("cache")
    assert taken("", JAX_COMPILATION_CACHE_DIR="")[1]["JAX_COMPILATION_CACHE_DIR"] == ""


@pytest.fixture
def command(monkeypatch):
    """Adds a command `probe` that runs the given function."""

    def add(run):
        module = types.SimpleNamespace(main=run)
        monkeypatch.setitem(main.COMMANDS, "probe", main.Command("probe_module", "", ""))
        monkeypatch.setattr(main.importlib, "import_module", lambda name: module)

    return add


def test_the_exit_code_is_the_commands(command):
    command(lambda argv: len(argv))
    assert main.main(["probe", "a", "b"]) == 2


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("x.yaml: no"), 2), (KeyboardInterrupt, 130)]
)
def test_errors_of_the_user_end_with_one_line(command, capsys, error, code):
    def run(argv):
        raise error

    command(run)
    assert main.main(["probe"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines == (["error: x.yaml: no"] if code == 2 else ["interrupted"])


def test_other_errors_are_not_hidden(command):
    command(lambda argv: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main.main(["probe"])


def test_an_unknown_command_lists_the_known_ones(capsys):
    assert main.main(["lable"]) == 2
    assert "label" in capsys.readouterr().err


def test_help_gives_an_example_of_every_command(capsys):
    assert main.main([]) == 0
    text = capsys.readouterr().out
    for name, entry in main.COMMANDS.items():
        assert f"$ dso {name}" in text
        assert entry.summary in text


def test_doctor_reports_versions_devices_and_attention(capsys):
    assert main.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"]
    assert report["versions"]["mujoco"] == "4.0.0"
    assert report["devices"][0]["platform"] in ("cpu", "gpu")
    assert report["attention"]["xla"] == "works"


def test_doctor_says_what_is_missing_and_what_that_disables(monkeypatch, capsys):
    absent = ("torch", "grain")
    version = doctor.importlib.metadata.version

    def without(name):
        if name in absent:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "missing: torch" in text
    assert "missing: grain\n  disables: everything" in text
    assert "not usable" in text
