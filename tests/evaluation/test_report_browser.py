"""The report of 1000 objects in a real browser: size, time to use, filters, keyboard, looks.

Screenshots stay in .cache/screenshots/, for people and for CI to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dso_jax.evaluation.result import Result
from dso_jax.report import evaluation, evaluation_drawings
from dso_jax.report.evaluation_drawings import Task, draw_all
from dso_jax.report.evaluation_gallery import change, kinds
from sim_mjx import Protocol
from tests.evaluation import results
from tests.evaluation.browser import Page, browser
from tests.sim import shapes

pytestmark = pytest.mark.slow

SCREENSHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
COUNT = 1000
MEGABYTES, SECONDS = 20, 2.0  # the page of so many may be so large and take so long
LAID = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))"


class Made(NamedTuple):
    """A report and what is in it."""

    path: Path
    result: Result
    rows: list[int]  # in the order of the page


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """1000 objects before and after: the committed meshes over and over, each drawn twice."""
    folder = tmp_path_factory.mktemp("report")
    meshes = sorted((shapes.DATA / "meshes").glob("*.obj"))
    random = np.random.default_rng(0)
    tilt, before = (
        np.where(random.random(COUNT) < part, 90 * random.random(COUNT), random.random(COUNT))
        for part in (0.2, 0.5)
    )
    tilt[::50] = np.nan
    paths = [meshes[row % len(meshes)] for row in range(COUNT)]
    names = [f"{path.stem}-{row:04}" for row, path in enumerate(paths)]
    result = results.result(paths, tilt.tolist(), (paths, before.tolist()), names)
    protocol = Protocol.preset("dso-eval")
    tasks = [
        Task(str(path), protocol, np.array(pose[3:]), stable)
        for pose, stable in ((results.UPRIGHT, True), (results.ON_ITS_SIDE, False))
        for path in meshes
    ]
    drawn = draw_all(tasks)

    def drawings(tilts):
        kind = [row % len(meshes) + len(meshes) * bool(t >= 20) for row, t in enumerate(tilts)]
        return {r: None if np.isnan(tilts[r]) else drawn[kind[r]] for r in range(COUNT)}

    rows = np.argsort(-change(result), kind="stable").tolist()
    path = folder / "report.html"
    page = evaluation.render(result, rows, drawings(tilt), drawings(before), folder)
    path.write_text(page, "utf-8")
    return Made(path, result, rows)


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab, made) -> Page:
    """The report, opened anew."""
    tab.complaints.clear()
    tab.requests.clear()
    tab.look(1200, 900)
    tab.open(made.path)
    return tab


def shown(page: Page) -> list[str]:
    """Names of the cards that are not hidden, in order."""
    cards = "[...document.querySelectorAll('.item:not([hidden])')]"
    return page.eval(f"{cards}.map(card => card.querySelector('h3').firstChild.data.trim())")


def choose(page: Page, name: str, value: str) -> None:
    page.eval(
        f"(() => {{ const field = document.forms[0].elements['{name}']; field.value = '{value}';"
        "field.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )


def test_a_thousand_objects_are_small_and_fast(page, made):
    assert made.path.stat().st_size < MEGABYTES * 2**20
    times = []
    for _ in range(3):
        page.open(made.path)
        entry = "performance.getEntriesByType('navigation')[0]"
        times.append(page.eval(f"{entry}.loadEventEnd - {entry}.startTime") / 1000)
        assert page.eval("!document.getElementById('filters').hidden")
    # Then every order and filter answers at once.
    spent = page.eval(
        "(() => { const start = performance.now(); const order = document.forms[0].elements.order;"
        "for (const option of order.options) { order.value = option.value;"
        "order.dispatchEvent(new Event('input', {bubbles: true})); document.body.offsetHeight }"
        "return (performance.now() - start) / order.options.length / 1000 })()"
    )
    size = made.path.stat().st_size / 2**20
    print(
        f"{COUNT} objects: {size:.1f} MiB, usable after {min(times):.2f} s, {spent:.3f} s an order"
    )
    assert min(times) < SECONDS
    assert spent < 0.5


def test_nothing_is_fetched_and_nothing_complains(page, made):
    page.eval("document.getElementById('gallery').scrollIntoView()")
    page.eval(LAID)
    assert page.eval("[...document.images].slice(0, 12).every(i => i.complete && i.naturalWidth)")
    assert page.complaints == []
    assert page.requests == [made.path.resolve().as_uri()]


def test_filters_and_orders(page, made):
    names = [str(made.result.columns["object"][row]) for row in made.rows]
    found = [kinds(made.result)[row] for row in made.rows]
    assert shown(page) == names
    choose(page, "kind", "=broken")
    broken = [name for name, kind in zip(names, found, strict=True) if kind == "broken"]
    assert shown(page) == broken and len(broken) > 20
    assert page.eval("document.getElementById('count').textContent") == (
        f"{len(broken)} of {COUNT} meshes"
    )
    choose(page, "text", "STOOL2 obj")
    assert shown(page) == [name for name in broken if "stool2" in name]
    choose(page, "text", "nothing is called this")
    assert shown(page) == [] and page.eval("!document.getElementById('none').hidden")
    page.eval("document.forms[0].reset(); new Promise(done => setTimeout(done, 50))")
    assert shown(page) == names
    choose(page, "category", "=kind 1")
    assert len(shown(page)) == (made.result.columns["category"] == "kind 1").sum()
    choose(page, "category", "")
    choose(page, "order", "tilt")
    tilt = dict(zip(made.result.columns["object"], made.result.columns["tilt_deg"], strict=True))
    ordered = np.array([tilt[name] for name in shown(page)])
    known = ordered[: np.isfinite(ordered).sum()]  # what has no tilt comes last
    assert np.isfinite(known).all() and (np.diff(known) <= 0.01).all()  # as they are written
    choose(page, "order", "name")
    assert shown(page) == sorted(names)


def test_the_keyboard_is_enough(page, made):
    """From the top: the first key leads to the gallery, the next ones through its filters."""
    page.press("Tab")
    assert page.eval("document.activeElement.textContent") == "To the gallery"
    page.press("Enter")
    page.eval(LAID)
    assert page.eval("document.activeElement.id") == "gallery"
    page.press("Tab")
    assert page.eval("document.activeElement.name") == "text"
    page.press("Tab")
    assert page.eval("document.activeElement.name") == "kind"
    page.press("ArrowDown")
    page.eval(LAID)
    assert 0 < len(shown(page)) < COUNT
    for _ in range(4):  # category, order, show all, the first link
        page.press("Tab")
    assert page.eval("document.activeElement.tagName") == "A"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.eval(outline) != "none"


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("light", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 390, "light")],
)
def test_it_looks_right(page, name, width, scheme):
    page.look(width, 900, scheme)
    page.eval(f"document.getElementById('gallery').scrollIntoView(); {LAID}")
    assert page.eval("document.documentElement.scrollWidth <= innerWidth")
    channels = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert (sum(page.eval(channels)) < 3 * 128) == (scheme == "dark")
    page.screenshot(SCREENSHOTS / f"evaluation-{name}.png")
    assert (SCREENSHOTS / f"evaluation-{name}.png").stat().st_size > 20_000


def test_pictures_do_not_depend_on_how_many_processes_draw_them():
    paths = sorted((shapes.DATA / "meshes").glob("*.obj"), key=lambda path: path.stat().st_size)[:5]
    protocol = Protocol.preset("dso-eval")
    upright = np.array(results.UPRIGHT[3:])
    tasks = [None, *(Task(str(path), protocol, upright, True) for path in [*paths] * 6)]
    told: list[int] = []
    one, two = draw_all(tasks), draw_all(tasks, workers=2, progress=told.append)
    assert len(tasks) > evaluation_drawings.FEW and sum(told) == len(tasks)
    assert one[0] is None and two[0] is None
    assert all(
        a and b and a.start == b.start and a.rest == b.rest
        for a, b in zip(one[1:], two[1:], strict=True)
    )
