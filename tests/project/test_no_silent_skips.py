"""A skip is a failure in CI, unless the large data really are absent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
TESTS = """
import pytest

def test_runs():
    pass

def test_skips():
    pytest.skip("no torch")

def test_data(shared_data):
    shared_data("objects")

@pytest.mark.xfail
def test_known_fault():
    raise ValueError
"""


def run(checkout: Path, ci: str, **tests: str) -> dict[str, int]:
    """Runs the tests of a new checkout with our conftest.

    Returns:
        Outcome -> number of tests, with the exit status under `status`.
    """
    (checkout / "tests").mkdir(parents=True)
    (checkout / "tests" / "conftest.py").write_text(CONFTEST.read_text("utf-8"), "utf-8")
    for name, text in tests.items():
        (checkout / "tests" / f"{name}.py").write_text(text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=checkout,
        env={name: value for name, value in os.environ.items() if name != "DSO_JAX_DATA"}
        | {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    counts = re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1].split(" in ")[0])
    return {word: int(number) for number, word in counts} | {"status": done.returncode}


def test_a_skip_fails_in_ci_but_absent_data_and_known_faults_do_not(tmp_path):
    found = run(tmp_path / "a", "true", test_one=TESTS)
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "xfailed": 1, "status": 1}


def test_elsewhere_a_skip_is_a_skip(tmp_path):
    found = run(tmp_path / "a", "", test_one=TESTS)
    assert found == {"passed": 1, "skipped": 2, "xfailed": 1, "status": 0}


def test_data_beside_the_checkout_are_used(tmp_path):
    (tmp_path / "shared" / "data" / "objects").mkdir(parents=True)
    found = run(tmp_path / "a", "", test_one=TESTS)
    assert found == {"passed": 2, "skipped": 1, "xfailed": 1, "status": 0}


def test_a_module_that_skips_itself_fails_in_ci(tmp_path):
    module = "import pytest\npytest.importorskip('no_such_module_at_all')\n"
    found = run(tmp_path / "a", "true", test_one=module)
    assert found["status"] != 0
    assert "skipped" not in found
