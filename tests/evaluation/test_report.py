"""The report of an evaluation: what it shows, in which order, and that it needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from scipy.spatial import cKDTree

from dso_jax.evaluation.result import Result
from dso_jax.report import charts, evaluation, evaluation_tables, footing, pictures
from dso_jax.report.evaluation_gallery import change, kinds
from sim_mjx.explain import Footing
from tests.evaluation import results

VOID = ("meta", "img", "input", "br")  # elements without an end


class Reader(HTMLParser):
    """Elements with their attributes; fails where an element is not closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def all(self, tag: str, style: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and style in (a.get("class") or "")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Result]:
    """A folder with a report, and its evaluation."""
    folder = tmp_path_factory.mktemp("report")
    result = results.small(folder / "meshes")
    told: list[int] = []
    evaluation.write(folder / "report.html", result, workers=1, progress=told.append)
    assert sum(told) == evaluation.pictures(result) == 12
    return folder, result


@pytest.fixture(scope="module")
def page(made) -> str:
    return (made[0] / "report.html").read_text("utf-8")


def test_the_page_is_whole_and_fetches_nothing(page):
    found = Reader(page)
    sources = [a["src"] for _, a in found.elements if "src" in a]
    assert sources and all(re.match("data:image/webp;base64,", source or "") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<link", page)
    assert all(a["alt"] for a in found.all("img"))
    assert all(a.get("aria-label") for a in found.all("svg"))
    assert "prefers-color-scheme: dark" in page


def test_the_worst_change_comes_first(made, page):
    _, result = made
    cards = Reader(page).all("article")
    order = ["no mesh.obj", "broken.obj", "<script>", "same.obj", "gone.obj", "fixed.obj"]
    assert [c["data-text"].split()[-1] if c["data-text"] else "" for c in cards] == [
        name.lower().split()[-1] for name in order
    ]
    assert [c["data-kind"] for c in cards] == [
        *("invalid", "broken", "stands", "stands", "stands", "fixed"),
    ]
    assert kinds(result)[3] == "broken" and kinds(result)[1] == "fixed"
    assert change(result)[0] == pytest.approx(2.0)  # 3 degrees after, 1 before


def test_without_a_comparison_what_falls_comes_first_and_then_small_margins(tmp_path):
    result = results.result([tmp_path / "a.obj"] * 4, [1.0, 80.0, 2.0, np.nan])
    order = np.argsort(-change(result), kind="stable")
    assert order.tolist() == [3, 1, 0, 2]  # margins are 5, 6, 7 degrees
    assert kinds(result) == ["stands", "falls", "stands", "invalid"]


def test_names_are_links_that_lead_to_the_meshes(made, page):
    folder, result = made
    links = [a["href"] or "" for a in Reader(page).all("a") if a["href"] != "#gallery"]
    names = {"results.csv", "results.json"}
    targets = {(folder / unquote(link)).resolve() for link in links if link not in names}
    assert set(links) >= names
    expected = {Path(path) for side in ("", "before_") for path in result.columns[f"{side}path"]}
    assert targets == {path.resolve() for path in expected}


def test_what_has_no_picture_says_why_and_names_stay_names(page):
    assert '<p class="gone">not_a_mesh</p>' in page
    assert '<p class="gone">the file cannot be read any more</p>' in page
    assert "&lt;script&gt; <small>" in page and page.count("<script") == 1
    assert "a &lt;b&gt;" in page  # of the command


def test_numbers_of_the_tables_are_the_summary_s(made, page):
    _, result = made
    stable = result.summary["all"]["stable"]
    assert stable["value"] == 0.8  # of five that came out
    assert "80.0 % of 5 meshes stand; before, 83.3 %" in page and "1 more could not be" in page
    assert "<b>80.0</b>" in page and "<b>83.3</b>" in page
    assert "stood before, falls now (1)" in page
    assert "guards: not judged without shapes" in page


def test_optional_sections_appear_with_what_they_show(made):
    folder, result = made
    interval = {"value": 0.9876, "low": 0.9, "high": 1.0}
    curve = {"value": [1.0, 0.5], "low": [0.9, 0.4], "high": [1.0, 0.6]}
    confusion = {"stand_stand": 3, "fall_fall": 1, "stand_fall": 1, "fall_stand": 0}
    guard = {"share": 0.31, "label": "Base plate", "why": "a slab <below>"}
    tables = {
        "verdict": {"text": "guards: x", "ok": False, "tolerated": 0.05, "guards": {"p": guard}},
        "reasons": {"not_a_mesh": 7},
        "categories": {"chairs": {"meshes": {"value": 6}, "stable": interval}},
        "baselines": {"cut-0.05": {"stable": interval, "cd": {"value": 0.01}}},
        "checkpoints": {"base": {"stable": interval}, "step 100": {"iou": interval}},
        "best": {"name": "step 100", "suspect": ["step 200"]},
        "engines": {"sapien": {**confusion, "agreement": interval}},
    }
    more = Result(
        result.record,
        result.columns,
        result.poses,
        result.summary | tables,
        {
            "survival": {"theta": [0.0, 0.01], **curve},
            "checkpoints": {
                "step": [0, 100],
                "stable": [0.5, 0.7],
                "stable_low": [0.4, None],
                "stable_high": [0.6, None],
                "iou": [0.02, None],
            },
        },
        {"sapien": np.array([3.0, 30.0, 2.0, 90.0, np.nan, 4.0])},
        result.before_poses,
    )
    page = evaluation.render(more, [0, 1], {}, {}, folder)
    Reader(page)
    shown = ("31.0 %", "a slab &lt;below&gt;", "<code>not_a_mesh</code>", "cut-0.05", "chairs")
    for text in (
        *shown,
        "98.76",
        "Tilt in sapien",
        "Set down crooked",
        "0.0100",
        "0.988",
        "Best: <b>step 100</b>",
        "Guards suspect step 200",
    ):
        assert text in page, text
    assert 'class="bad">31.0 %' in page
    assert evaluation_tables.engines(more).count('class="dot series-3"') == 1  # fixed.obj
    drawn = evaluation_tables.checkpoints(more)
    assert drawn.count("<figure>") == 2 and drawn.count('class="band') == 1
    assert "2 of 6 meshes<" in page and "results.csv.</p>" in page


def test_a_series_without_an_interval_has_no_band():
    plain = charts.Series("", 2, [0, 1], [2.0, 3.0])
    assert "<polygon" not in charts.line_chart("t", [plain])
    drawn = charts.line_chart("t", [plain._replace(low=[1.0, float("nan")], high=[3.0, 4.0])])
    assert drawn.count("<polygon") == 1 and "nan" not in drawn


SQUARE = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("com", "style", "nearest"),
    [((0.5, 1.0), "good", (0.0, 1.0)), ((3.0, 0.5), "bad", (2.0, 0.5)), ((3, 3), "bad", (2, 2))],
)
def test_the_way_to_the_nearest_edge(com, style, nearest):
    feet = Footing(np.pad(SQUARE, [(0, 0), (0, 1)]), SQUARE, np.array([*com, 1.0]))
    point, inside = footing._nearest(SQUARE, np.array(com, float))
    assert tuple(point) == nearest and inside == (style == "good")
    drawn = footing.footing_svg(feet, SQUARE, "feet")
    assert f'class="com {style}"' in drawn and 'class="way"' in drawn
    line = Footing(np.array([[0.0, 0, 0], [1, 0, 0]]), np.zeros((0, 2)), np.zeros(3))
    assert 'class="way"' not in footing.footing_svg(line, SQUARE, "feet")


@pytest.mark.parametrize("height", [0.01, 3.0, 60.0])
def test_triangles_are_covered_without_gaps(height):
    """Every place in a triangle has a drawn point within a pixel, and few points are spent."""
    corners = np.array([[[0.0, 0.0, 1.0], [80.0, 0.0, 2.0], [30.0, height, 5.0]]])
    drawn = pictures._cover(corners)
    random = np.random.default_rng(0).dirichlet(np.ones(3), 4000)
    inside = random @ corners[0]
    assert cKDTree(drawn[:, :2]).query(inside[:, :2])[0].max() < 0.75
    assert np.abs(drawn[:, 2].min() - 1) < 1e-5 and np.abs(drawn[:, 2].max() - 5) < 1e-5
    assert len(drawn) < 2.2 * (80 + 2) * (height + 2)


def test_a_crease_stays_sharp_and_a_curve_smooth():
    cube = pictures.Surface(
        np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float),
        np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                  [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]),
    )  # fmt: skip
    outward = pictures._outward(cube.vertices[cube.faces])
    normals = pictures._normals(cube, outward)
    np.testing.assert_allclose(np.abs(normals).max(axis=2), 1)
    flat = pictures.Surface(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.1], [1, 1, 0]], float),
                            np.array([[0, 1, 2], [1, 3, 2]]))  # fmt: skip
    bent = pictures._normals(flat, pictures._outward(flat.vertices[flat.faces]))
    np.testing.assert_allclose(bent[0, 1], bent[1, 0])  # the vertex they share
