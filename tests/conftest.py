"""What holds for every test: the devices, the compilation cache, and no silent skips in CI."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA_ABSENT = "data absent: "

# JAX reads these when it is first imported, and pytest imports this file before any test module.
# Four CPU devices let sharded runs be compared with one device.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="session")
def shared_data():
    """Returns a function from a relative path to that path in the folder of large data.

    The folder is `$DSO_JAX_DATA`, else `shared/data` in or beside the checkout. A clone alone has
    none; only then may a test skip in CI.
    """
    places = [os.environ.get("DSO_JAX_DATA"), ROOT / "shared/data", ROOT.parent / "shared/data"]

    def find(relative: str) -> Path:
        for place in places:
            if place is not None and (path := Path(place) / relative).exists():
                return path
        pytest.skip(DATA_ABSENT + relative)

    return find


@pytest.fixture
def described_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels can be lowered by way of Triton without a GPU: it is said to be an H200."""
    with contextlib.suppress(ImportError):  # since JAX 0.11 the lowering wants to know which GPU
        from jax._src.pallas.triton import gpu_info  # pyright: ignore[reportAttributeAccessIssue]

        h200 = gpu_info.get_gpu_info_from_version(gpu_info.GpuVersion.H200)
        monkeypatch.setattr(gpu_info, "get_gpu_info", lambda: h200)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Turns a skip into a failure in CI: whatever is skipped there runs nowhere."""
    report = yield
    expected = hasattr(report, "wasxfail") or DATA_ABSENT in str(report.longrepr)
    if os.environ.get("CI") == "true" and report.skipped and not expected:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {item.nodeid}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """As above for a module that skips while it is imported (importorskip)."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {collector.nodeid}: {report.longrepr}"
    return report
