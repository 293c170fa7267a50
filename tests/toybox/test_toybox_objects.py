"""Objects of the toybox: what holds for every one of them, and for the seeds that name them."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from dso_jax import toybox
from dso_jax.toybox.balance import static_margin_deg, support_polygon
from dso_jax.toybox.shapes import GROUND, Box, Capsule, Ellipsoid, Frustum, Ring, rasterise

# The shipped generator was trained on these very objects; if this changes, train it again.
GOLDEN_SEED, GOLDEN_FAMILY = 7, "tripod"
GOLDEN_SHA256 = "64054d0574ead6f4a735352d25e012bfc659937fcd19584590eb01e49a8b162a"


@pytest.fixture(scope="module")
def objects():
    return [toybox.make_object(seed) for seed in toybox.split("heldout", 110)]


def test_the_golden_object_has_not_changed():
    toy = toybox.make_object(GOLDEN_SEED)
    assert toy.family == GOLDEN_FAMILY
    assert hashlib.sha256(np.packbits(toy.occupancy).tobytes()).hexdigest() == GOLDEN_SHA256


def test_a_seed_names_one_object_and_another_seed_another():
    first, again, other = (toybox.make_object(seed) for seed in (3, 3, 3 + len(toybox.FAMILIES)))
    np.testing.assert_array_equal(first.occupancy, again.occupancy)
    assert first.margin_deg == again.margin_deg
    assert other.family == first.family
    assert (other.occupancy != first.occupancy).any()


def test_families_take_turns(objects):
    assert len(toybox.FAMILIES) >= 8
    counts = Counter(toy.family for toy in objects)
    assert counts == dict.fromkeys(toybox.FAMILIES, 110 // len(toybox.FAMILIES))


def test_objects_are_single_tall_pieces_inside_the_grid(objects):
    for toy in objects:
        assert toy.occupancy.shape == (toybox.RESOLUTION,) * 3
        assert ndimage.label(toy.occupancy)[1] == 1, toy.seed
        low, high = (np.argwhere(toy.occupancy).min(axis=0), np.argwhere(toy.occupancy).max(axis=0))
        assert low[2] == GROUND, toy.seed
        assert 23 <= high[2] - low[2] + 1 <= 28, toy.seed
        assert (low > 0).all() and (high < toybox.RESOLUTION - 1).all(), toy.seed


def test_feet_are_at_least_two_voxels_tall(objects):
    for toy in objects:
        sole, above = toy.occupancy[..., GROUND], toy.occupancy[..., GROUND + 1]
        assert (above & sole).sum() >= 0.8 * sole.sum(), toy.seed


def test_margins_lie_in_the_band_and_spread_over_it(objects):
    margins = np.array([static_margin_deg(toy.occupancy) for toy in objects])
    np.testing.assert_array_equal(margins, [toy.margin_deg for toy in objects])
    assert (margins >= toybox.MIN_MARGIN_DEG).all() and (margins <= toybox.MAX_MARGIN_DEG).all()
    assert margins.std() > 0.2 * (toybox.MAX_MARGIN_DEG - toybox.MIN_MARGIN_DEG)


def test_a_missing_row_of_foot_voxels_tips_a_fair_share(objects):
    """Small errors must matter, or there is nothing to prefer; not always, or nothing to learn."""
    tipped = []
    for toy in objects:
        for axis in (0, 1):
            rows = np.flatnonzero(toy.occupancy[..., GROUND].any(axis=1 - axis))
            for row in (rows[0], rows[-1]):
                cut = toy.occupancy.copy()
                np.moveaxis(cut, axis, 0)[row, :, GROUND : GROUND + 2] = False
                tipped.append(static_margin_deg(cut) <= 0.0)
    assert 0.1 < np.mean(tipped) < 0.4


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed: expected a non-negative integer"):
        toybox.make_object(-1)


def test_margin_of_a_box_and_of_one_with_an_overhang():
    box = np.zeros((32, 32, 32), dtype=bool)
    box[10:14, 10:20, 2:22] = True
    assert static_margin_deg(box) == pytest.approx(math.degrees(math.atan2(1.5, 10.0)))
    # 400 voxels at the top move the mass beyond the foot's last voxel centres, x = 13.5.
    box[14:24, 10:20, 18:22] = True
    x, z = (800 * 12.0 + 400 * 19.0) / 1200, (800 * 10.0 + 400 * 18.0) / 1200
    assert static_margin_deg(box) == pytest.approx(math.degrees(math.atan2(13.5 - x, z)))
    assert static_margin_deg(box) < 0.0


def test_margin_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no voxel is occupied"):
        static_margin_deg(np.zeros((32, 32, 32), dtype=bool))


def test_support_polygon_joins_separate_feet():
    layer = np.zeros((8, 8), dtype=bool)
    layer[1, 1] = layer[5, 1] = layer[3, 6] = True
    assert support_polygon(layer) == [(1.5, 1.5), (5.5, 1.5), (3.5, 6.5)]


@pytest.mark.parametrize(
    ("part", "volume"),
    [
        (Box((0.0, 0.0, 14.0), (4.0, 5.0, 6.0)), 960.0),
        (Box((0.0, 0.0, 14.0), (4.0, 5.0, 6.0), yaw=0.5), 960.0),
        (Box((0.0, 0.0, 14.0), (4.0, 5.0, 6.0), rake=2.0), 960.0),
        (Ellipsoid((0.3, -0.2, 14.0), (5.0, 6.0, 7.0)), 4 / 3 * math.pi * 210.0),
        (Capsule((-2.0, 0.0, 8.0), (2.0, 3.0, 18.0), 4.0, 4.0), 16 * math.pi * (125**0.5 + 16 / 3)),
        (Frustum(0.0, 0.0, 4.0, 24.0, 7.0, 3.0), math.pi * 20.0 / 3.0 * (49 + 21 + 9)),
        (Ring((0.0, 0.0, 14.0), 8.0, 2.5, yaw=0.4), 2.0 * math.pi**2 * 8.0 * 6.25),
    ],
    ids=["box", "turned box", "raked box", "ellipsoid", "capsule", "frustum", "ring"],
)
def test_primitives_fill_their_volume(part, volume):
    assert rasterise([part], lean=(1.0, -1.0)).sum() == pytest.approx(volume, rel=0.03)
