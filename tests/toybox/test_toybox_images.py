"""Pictures and condition tokens: ranges, what they show, and the numbers weights depend on."""

import numpy as np
import pytest

from dso_jax import toybox

GOLDEN_MEAN, GOLDEN_STD = (0.0717, 0.0673, 0.0761), (0.2017, 0.1892, 0.1929)
VIEWS = range(len(toybox.VIEW_AZIMUTHS_DEG))


@pytest.fixture(scope="module")
def solid():
    return toybox.make_objects(toybox.split("heldout", 22))


def test_pictures_lie_in_range_on_black(solid):
    for view in VIEWS:
        images = toybox.render(solid, view)
        assert images.shape == (22, toybox.IMAGE_SIZE, toybox.IMAGE_SIZE, 3)
        assert images.dtype == np.float32
        assert images.min() == 0.0 and 0.8 < images.max() <= 1.0
        seen = np.any(images > 0, axis=-1)
        assert (seen.sum(axis=(1, 2)) > 40).all() and seen.mean() < 0.35
        frame = np.concatenate([seen[:, [0, -1]], seen[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
        assert not frame.any(), "an object is cut off by the picture's edge"


def test_an_object_has_another_picture_from_every_view(solid):
    images = np.stack([toybox.render(solid, view) for view in VIEWS])
    for one in VIEWS:
        for other in range(one):
            assert (np.abs(images[one] - images[other]).mean(axis=(1, 2, 3)) > 1e-3).all()


def test_a_picture_does_not_depend_on_its_batch(solid):
    np.testing.assert_array_equal(toybox.render(solid)[5:6], toybox.render(solid[5:6] > 0))


def test_an_empty_grid_is_black():
    assert not toybox.render(np.zeros((2, 32, 32, 32), dtype=bool)).any()


def test_up_is_up_and_right_is_right_of_the_camera():
    block = np.zeros((3, 32, 32, 32), dtype=bool)
    block[0, 15:17, 15:17, 15:17] = True
    block[1, 15:17, 15:17, 25:27] = True  # 10 voxels up
    block[2, 25:27, 15:17, 15:17] = True  # 10 voxels to +x
    seen = np.any(toybox.render(block, 0) > 0, axis=-1)
    middle, up, right = (np.argwhere(mask).mean(axis=0) for mask in seen)
    elevation, azimuth = np.radians(20.0), np.radians(toybox.VIEW_AZIMUTHS_DEG[0])
    # 1.13 voxels a pixel; single pixels of a two-voxel block may round either way.
    np.testing.assert_allclose(up - middle, [-10 * np.cos(elevation) / 1.13, 0.0], atol=0.6)
    x = 10 * np.cos(azimuth) / 1.13
    y = 10 * np.sin(azimuth) * np.sin(elevation) / 1.13  # +x lies nearer, so lower
    np.testing.assert_allclose(right - middle, [y, x], atol=0.6)


def test_nearer_is_brighter_in_blue():
    block = np.zeros((2, 32, 32, 32), dtype=bool)
    block[0, 12:20, 4:8, 12:20] = True  # towards the front
    block[1, 12:20, 24:28, 12:20] = True
    blue = toybox.render(block, 0)[..., 2].max(axis=(1, 2))
    assert blue[0] > blue[1] + 0.2


def test_golden_picture(solid):
    """The shipped flow was trained on these pictures; if they change, train it again."""
    images = toybox.render(solid, 0)
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), GOLDEN_MEAN, atol=2e-4)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), GOLDEN_STD, atol=2e-4)


def test_condition_tokens(solid):
    images = toybox.render(solid, 0)
    tokens = toybox.condition(images)
    assert (toybox.COND_TOKENS, toybox.COND_CHANNELS) == (16, 208)
    assert tokens.shape == (22, toybox.COND_TOKENS, toybox.COND_CHANNELS)
    assert tokens.dtype == np.float32
    assert abs(tokens[..., :192].mean()) < 0.1 and 0.9 < tokens[..., :192].std() < 1.1
    # Token 6 is row 1, column 2 of the 8x8 patches, and nothing else.
    np.testing.assert_allclose(
        tokens[:, 6, :192], (images[:, 8:16, 16:24].reshape(22, -1) - 0.08) / 0.2, rtol=1e-5
    )
    positions = tokens[0, :, 192:]
    assert (tokens[:, :, 192:] == positions).all()
    assert len(np.unique(positions.round(4), axis=0)) == toybox.COND_TOKENS


def test_bytes_for_reports():
    images = np.array([[-0.1, 0.0, 0.5, 1.0, 1.2]], dtype=np.float32)
    np.testing.assert_array_equal(toybox.image_to_uint8(images), [[0, 0, 128, 255, 255]])


def test_wrong_arguments_are_named(solid):
    with pytest.raises(ValueError, match=r"view: expected 0\.\.3, got 4"):
        toybox.render(solid, 4)
    with pytest.raises(ValueError, match=r"occupancy: expected shape \(N, 32, 32, 32\)"):
        toybox.render(solid[0])
