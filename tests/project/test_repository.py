"""The repository as a whole: its documents are true, its files are small, its settings agree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import dso_jax
from dso_jax.cli import environment, main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LONGEST_FILE = 400  # lines; beyond it a file holds more than one idea
LARGEST_FILE = 4 * 2**20  # bytes
PLACES_OF_ONE_MACHINE = re.compile(r"(?<![\w.~$}])/(?:work|root|home|opt|tmp)/\w")


def tracked() -> list[Path]:
    """Files under version control, or all but the hidden and built ones outside a checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or list(ROOT.glob("[!.]*/**/*"))
    return [path for path in paths if path.is_file()]


def commands() -> list[str]:
    """The command lines of the README: console blocks, and code that starts like a command."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    lines += re.findall(r"`((?:dso|make|python) [^`]*)`", README)
    return [line.split("#")[0].strip() for line in lines]


def test_the_readme_has_the_two_quick_start_commands():
    assert "make demo" in commands()
    assert "make test" in commands()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_of_the_readme_exists(line, capsys):
    words = line.replace("'", "").split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        extras = re.findall(r"\[(\w+)\]", line)
        assert all(extra in PROJECT["project"]["optional-dependencies"] for extra in extras)
    elif words[0] == "dso" and words[1] != "COMMAND":
        assert words[1] in main.COMMANDS
        given = [word for word in words if word.startswith("--")]
        actions = words[2:3] if words[1] == "toybox" else []
        assert_options_exist(words[1], actions, given, capsys)
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / words[2] / "__main__.py").is_file()
    elif words[0] == "python":
        program = (ROOT / words[1]).read_text("utf-8")
        given = [word for word in words if word.startswith("--")]
        if words[1] == "train.py":
            assert_options_exist("train", [], given, capsys)
        else:
            assert [option for option in given if f'"{option}"' not in program] == []
    for path in re.findall(r"configs/[\w.-]+\.yaml", line):
        assert (ROOT / path).is_file()


def assert_options_exist(command: str, actions: list[str], given: list[str], capsys) -> None:
    """Every option is one that the command's own help names."""
    try:
        assert main.main([command, *actions, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code == 0  # argparse and tyro leave that way
    known = capsys.readouterr().out + environment.OPTIONS
    assert [option for option in given if option not in known] == []


def test_links_of_the_documents_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"


def test_python_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked()
        if path.suffix == ".py"
        and (count := len(path.read_text("utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_tracked_files_stay_small():
    large = [str(path) for path in tracked() if path.stat().st_size > LARGEST_FILE]
    assert large == []


def test_no_file_names_a_place_of_one_machine():
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".css", ".html", ""}
    named = []
    for path in tracked():
        if path.suffix in suffixes and path != Path(__file__):
            text = path.read_text("utf-8", errors="ignore")
            named += [f"{path.name}: {m[0]}" for m in PLACES_OF_ONE_MACHINE.finditer(text)]
    assert named == []


def test_the_version_and_licence_are_stated_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", dso_jax.__version__)
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "dso_jax.__version__"
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_every_package_is_installed():
    """A subpackage that the metadata forgets works in a checkout and is missing in a wheel."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("dso_jax", "sim_mjx", "weight_port")
        for path in (ROOT / package).rglob("*.py")
    }
    listed = {name for name in PROJECT["tool"]["setuptools"]["packages"] if "configs" not in name}
    assert found == listed
