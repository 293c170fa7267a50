"""The comparison's numbers, its pictures and charts, and the page made of them."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dso_jax.report import charts, page, pictures, summary
from tests.project import example

ON_ITS_SIDE = np.array([1.0, 1.0, 0.0, 0.0]) / np.sqrt(2)  # a quarter turn about x


def test_summary_counts_invalid_samples_as_fallen():
    base = example.columns("base", objects=2, samples=2) | {
        "stable": np.array([True, True, False, True]),
        "status": np.array(["rest", "invalid", "rest", "rest"]),
        "tilt_deg": np.array([1.0, np.nan, 80.0, 3.0]),
    }
    numbers = summary.summarise(base, base)
    assert numbers["stable_percent"]["mean"] == 50
    assert numbers["tilt_mean_deg"] == pytest.approx(28)
    assert numbers["tilt_median_deg"] == 3
    assert numbers["invalid_percent"] == 25
    assert "difference_points" not in numbers


def test_summary_of_a_method_is_paired_with_the_base():
    base = example.columns("base", objects=2, samples=2) | {
        "stable": np.array([True, False, False, False])
    }
    tuned = base | {"stable": np.array([False, True, True, False])}
    numbers = summary.summarise(tuned, base)
    assert numbers["difference_points"]["mean"] == 25
    assert (numbers["fixed"], numbers["broken"]) == (2, 1)


def test_methods_on_other_samples_are_refused():
    base = example.columns("base")
    with pytest.raises(ValueError, match="seed"):
        summary.summarise(base | {"seed": base["seed"] + 1}, base)


@pytest.mark.parametrize(
    ("column", "factor", "passes"),
    [("iou", 0.99, True), ("iou", 0.9, False), ("footprint", 1.2, True), ("footprint", 1.4, False),
     ("height", 0.9, False), ("volume", 1.2, False), ("components", 1.5, False)],
)  # fmt: skip
def test_guards_bound_the_change_from_the_base(column, factor, passes):
    base = example.columns("base")
    guards = summary.summarise(base | {column: base[column] * factor}, base)["guards"]
    assert [name for name, guard in guards.items() if not guard["passes"]] == (
        [] if passes else [column]
    )


def test_several_seeds_are_pooled_by_object():
    seeds = {seed: {m: example.columns(m, seed) for m in example.METHODS} for seed in (0, 1)}
    results = summary.compare(seeds)
    assert (results["objects"], results["samples"], len(results["runs"])) == (24, 192, 8)
    for name, numbers in results["methods"].items():
        means = [r["stable_percent"]["mean"] for r in results["runs"] if r["method"] == name]
        assert numbers["stable_percent"]["mean"] == pytest.approx(np.mean(means))


def block(size: tuple[int, int, int]) -> pictures.Surface:
    """The surface of a block of voxels, 32 to the unit."""
    logits = np.full((32, 32, 32), -9.0)
    logits[: size[0], : size[1], : size[2]] = 9.0
    surface = pictures.surface_of_logits(logits)
    assert surface is not None
    return surface


def test_the_surface_encloses_the_voxels():
    extent = np.ptp(block((8, 16, 24)).vertices, axis=0)
    np.testing.assert_allclose(extent, np.array([8, 16, 24]) / 32, atol=1e-6)
    assert pictures.surface_of_logits(np.full((8, 8, 8), -1.0)) is None


def test_turning_keeps_the_object_on_the_ground():
    turned = pictures.turned(block((8, 16, 24)), ON_ITS_SIDE)
    low, high = turned.vertices.min(0), turned.vertices.max(0)
    np.testing.assert_allclose(high - low, np.array([8, 24, 16]) / 32, atol=1e-6)
    np.testing.assert_allclose([*(low + high)[:2], low[2]], 0, atol=1e-6)


def test_a_quarter_turn_about_x_lays_the_top_towards_minus_y():
    turned = pictures.turned(block((8, 8, 24)), ON_ITS_SIDE)
    above = block((8, 8, 24)).vertices[:, 2].argmax()
    assert turned.vertices[above, 1] == pytest.approx(turned.vertices[:, 1].min())


def opaque_rows(quaternion) -> int:
    drawn = pictures.draw(pictures.turned(block((6, 6, 28)), quaternion), (200, 100, 50))
    return int((drawn[..., 3] == 255).any(axis=1).sum())


def test_what_stands_is_drawn_taller_than_what_lies():
    assert opaque_rows(pictures.UPRIGHT) > 1.5 * opaque_rows(ON_ITS_SIDE)


def test_a_picture_has_the_colour_a_shadow_and_nothing_else():
    drawn = pictures.draw(pictures.turned(block((9, 9, 20))), (200, 100, 50))
    solid = drawn[drawn[..., 3] == 255][:, :3].astype(float)
    np.testing.assert_allclose(solid[:, 1] / solid[:, 0], 0.5, atol=0.03)
    shadow = drawn[(drawn[..., 3] > 60) & (drawn[..., 3] < 110)]
    assert len(shadow) > 100
    assert (shadow[:, :3].max(1) == 0).mean() > 0.9
    assert not drawn[0].any()
    assert not pictures.draw(None, (200, 100, 50)).any()


def test_png_keeps_the_pixels():
    drawn = pictures.draw(pictures.turned(block((9, 9, 20))), (200, 100, 50))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(drawn)))), drawn)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (61, 88, [60, 70, 80, 90]), (-3, 4, [-4, -2, 0, 2, 4])],
)
def test_ticks_are_round_and_enclose_the_data(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_constant_are_distinct():
    assert len(set(charts.ticks(5, 5))) > 1
    assert len(set(charts.ticks(0, 0))) > 1


def test_a_curve_is_cut_where_it_is_not_finite():
    series = charts.Series("a", 1, [0, 1, 2, 3, 4], [0.0, 1.0, float("nan"), 1.0, 0.0])
    drawn = charts.line_chart("t", [series])
    assert drawn.count("<polyline") == 2
    assert "nan" not in drawn
    assert charts.line_chart("t", [series._replace(y=[float("nan")] * 5)]) == ""


class Fetches(HTMLParser):
    """Collects what a browser would fetch or run, and the alternative texts of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses, self.scripts, self.texts = [], 0, []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[key] for key in ("src", "href", "srcset") if key in values]
        self.scripts += tag == "script"
        self.texts += [values.get("alt", "")] if tag == "img" else []


@pytest.fixture(scope="module")
def html() -> str:
    seeds = {seed: {m: example.columns(m, seed) for m in example.METHODS} for seed in (0, 1)}
    results = summary.compare(seeds) | example.provenance() | {"seeds": [0, 1]}
    rows = [{"step": step, "loss": 0.69 - step / 100} for step in range(10)]
    image = pictures.png(np.zeros((2, 2, 4), np.uint8))
    cells = {m: page.Cell(image, image, m != "base", "rest", 12.34) for m in example.METHODS}
    gallery = [page.Exhibit("lamp <1>", image, cells)]
    return page.render(results, {"dpo": rows, "dro": rows}, gallery)


def test_the_page_fetches_nothing(html):
    found = Fetches()
    found.feed(html)
    assert found.addresses
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert found.scripts == 0
    assert not re.search(r"https?://|@import|url\(", html)


def test_the_page_tells_what_it_shows(html):
    for text in ("stands after DRO", "Guards", "lamp &lt;1&gt;", "dso demo --seeds 1", "Each seed"):
        assert text in html
    assert "prefers-color-scheme: dark" in html
    found = Fetches()
    found.feed(html)
    assert all(found.texts)
    assert "lamp <1>, base, at rest: falls" in found.texts
