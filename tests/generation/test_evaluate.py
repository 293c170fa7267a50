"""Shape measures against hand-made grids."""

import numpy as np
import pytest

from dso_jax.evaluation import evaluate


@pytest.fixture
def table():
    """A hollow 4x4x4 cube on a 2x2x2 foot, in a grid of 8; and an empty grid; and two cubes."""
    grids = np.zeros((3, 8, 8, 8), bool)
    grids[0, 2:6, 2:6, 3:7] = True
    grids[0, 3:5, 3:5, 4:6] = False
    grids[0, 3:5, 3:5, 1:3] = True
    grids[2, 0:2, 0:2, 0:2] = True
    grids[2, 5:7, 5:7, 5:7] = True
    return grids


def test_measures_of_known_shapes(table):
    measured = evaluate.shape_measures(table)
    np.testing.assert_allclose(measured["footprint"], [4 / 64, 0, 4 / 64])
    np.testing.assert_allclose(measured["volume"], [(64 + 8) / 512, 0, 16 / 512])  # filled
    np.testing.assert_allclose(measured["height"], [6 / 8, 0, 7 / 8])
    np.testing.assert_array_equal(measured["components"], [1, 0, 2])
    np.testing.assert_array_equal(measured["empty"], [False, True, False])


def test_iou_counts_voxels(table):
    other = table.copy()
    other[0, 2, 2, 3] = False
    other[2] = False
    np.testing.assert_allclose(evaluate.iou(table, other), [1 - 1 / 64, 0, 0])
