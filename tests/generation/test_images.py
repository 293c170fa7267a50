"""Images become TRELLIS's prepared pictures, to the pixel, whatever their mode and orientation."""

import numpy as np
import pytest
from PIL import Image

from dso_jax import images
from dso_jax.errors import UsageError
from tests.generation.pictures import Keyed, cutout, noise, png16, reference, saved

# --- pixels


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((60, 80), (10, 12, 50, 40)),  # centre (30, 26)
        ((60, 80), (10, 12, 51, 41)),  # centre (30.5, 26.5): rounds to an even pixel
        ((60, 80), (11, 13, 52, 42)),  # centre (31.5, 27.5): the other parity
        ((60, 80), (0, 0, 79, 59)),  # leaves the image on all sides
        ((60, 80), (0, 3, 2, 50)),  # leaves it on the left
        ((60, 80), (70, 58, 79, 59)),  # leaves it in a corner
        ((700, 640), (5, 9, 630, 680)),  # is scaled down
        ((5, 5), (1, 1, 3, 3)),  # the smallest: three pixels across
    ],
)
def test_crop_scale_and_composition_equal_the_reference(size, box):
    picture = cutout(size[0], size[1], box)
    assert np.array_equal(images.prepare(picture), reference(picture))


def test_real_prompts_and_pictures_equal_the_reference(shared_data):
    prompts = sorted(shared_data("prompts").glob("*.png"))
    pictures = sorted(shared_data("objects/sweethome3d-cc0/img").glob("*.png"))[::12]
    assert len(prompts) == 6
    assert len(pictures) >= 9
    checked = 0
    for path in prompts + pictures:
        with Image.open(path) as picture:
            if picture.mode == "RGBA":
                expected = reference(picture)
                assert np.array_equal(images.prepare(images.open_image(path)), expected), path
                checked += 1
    assert checked >= 14


def test_alpha_counts_above_204_and_opacity_must_be_broken_somewhere():
    pixels = np.full((40, 40, 4), 255, np.uint8)
    pixels[..., 3] = 204
    pixels[10:20, 10:30, 3] = 205
    assert np.array_equal(
        images.prepare(Image.fromarray(pixels)), reference(Image.fromarray(pixels))
    )
    pixels[..., 3] = 204
    with pytest.raises(UsageError, match=r"cup\.png: no object: alpha is nowhere above 204"):
        images.prepare(Image.fromarray(pixels), name="cup.png")
    pixels[..., 3] = 255
    with pytest.raises(UsageError, match=r"cup\.png: has no transparent background"):
        images.prepare(Image.fromarray(pixels), name="cup.png")


@pytest.mark.parametrize(
    ("size", "shown"),
    [((300, 200), (300, 200)), ((2100, 700), (1024, 341)), ((9, 2500), (3, 1024))],
)
def test_without_transparency_the_remover_sees_at_most_1024_pixels(size, shown):
    width, height = size
    for channels in (3, 4):
        pixels = noise(height, width, channels)
        pixels[..., 3:] = 255
        remover = Keyed()
        result = images.prepare(Image.fromarray(pixels), remover)
        expected = Image.fromarray(pixels[..., :3])
        if shown != size:
            expected = expected.resize(shown, Image.Resampling.LANCZOS)
        (seen,) = remover.seen
        assert (seen.mode, seen.size) == ("RGB", shown)
        assert np.array_equal(np.array(seen), np.array(expected))
        assert np.array_equal(result, reference(Keyed()(expected)))


def test_a_line_of_pixels_still_has_one_row_when_it_is_scaled():
    with pytest.raises(UsageError, match="no object"):
        images.prepare(Image.new("RGB", (3000, 1)), lambda image: Image.new("RGBA", image.size))


@pytest.mark.parametrize("edge", [1, 2])
def test_an_object_of_one_or_two_pixels_is_refused(edge):
    """1.2 times such an extent is less than two pixels: upstream's crop is empty."""
    picture = Image.new("RGBA", (edge, edge), (9, 9, 9, 210))
    with pytest.raises(UsageError, match=r"dot\.png: the object is less than 3 pixels across"):
        images.prepare(picture, name="dot.png")


def test_a_strip_that_would_need_a_huge_square_is_refused():
    picture = Image.new("RGBA", (12_000, 1), (9, 9, 9, 254))
    with pytest.raises(UsageError, match=r"strip\.png: a crop of 14398 pixels square"):
        images.prepare(picture, name="strip.png")


@pytest.mark.slow
def test_eight_thousand_pixels_square(tmp_path):
    """The crop reaches beyond what Pillow's own crop allows: 9598 pixels square."""
    tile = cutout(500, 500, (0, 0, 499, 499), seed=3)
    picture = Image.new("RGBA", (8000, 8000))
    for x in range(0, 8000, 500):
        picture.paste(tile, (x, (x * 7) % 8000))
    picture.putpixel((0, 0), (1, 2, 3, 255))
    picture.putpixel((7999, 7999), (1, 2, 3, 255))
    path = saved(tmp_path, picture, compress_level=0)
    assert np.array_equal(images.prepare(images.open_image(path)), reference(picture))

    path = saved(tmp_path, picture.convert("RGB"), compress_level=0)
    shown = picture.convert("RGB").resize((1024, 1024), Image.Resampling.LANCZOS)
    result = images.prepare(images.open_image(path), Keyed())
    assert np.array_equal(result, reference(Keyed()(shown)))


# --- modes


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3)])
def test_sixteen_bits_keep_the_upper_eight(tmp_path, kind, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 7, channels), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(png16(kind, pixels))
    opened = images.open_image(tmp_path / "deep.png")
    assert opened.mode == "RGB"
    assert np.array_equal(np.array(opened), np.broadcast_to(pixels >> 8, (6, 7, 3)))


@pytest.mark.parametrize(("kind", "channels"), [(4, 2), (6, 4)])
def test_sixteen_bits_with_alpha_are_rgba(tmp_path, kind, channels):
    pixels = noise(6, 7, channels).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(png16(kind, pixels * 257))  # exact in 8 bits
    opened = images.open_image(tmp_path / "deep.png")
    assert opened.mode == "RGBA"
    expected = pixels if channels == 4 else pixels[..., [0, 0, 0, 1]]
    assert np.array_equal(np.array(opened), expected)


def test_palettes_and_grey_keep_their_transparency(tmp_path):
    rng = np.random.default_rng(0)
    index = rng.integers(0, 4, (20, 30), dtype=np.uint8)
    colours = noise(1, 4, 3)[0]
    alphas = np.array([255, 0, 130, 255], np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    path = saved(tmp_path, palette, transparency=alphas.tobytes())
    with Image.open(path) as stored:
        assert stored.mode == "P"
    expected = np.concatenate([colours[index], alphas[index][..., None]], axis=-1)
    assert np.array_equal(np.array(images.open_image(path)), expected)
    assert np.array_equal(
        images.prepare(images.open_image(path)), reference(Image.fromarray(expected))
    )

    grey = noise(20, 30, 2)
    path = saved(tmp_path, Image.fromarray(grey))
    assert np.array_equal(np.array(images.open_image(path)), grey[..., [0, 0, 0, 1]])

    index_only = saved(tmp_path, palette)
    assert np.array_equal(np.array(images.open_image(index_only)), colours[index])


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "CMYK"])
def test_opaque_modes_become_rgb(tmp_path, mode):
    picture = Image.fromarray(noise(9, 12, 3)).convert(mode)
    path = saved(tmp_path, picture, "picture.tif")
    with Image.open(path) as stored:
        assert stored.mode == mode
    opened = images.open_image(path)
    assert opened.mode == "RGB"
    pixels = np.array(picture).astype(int)
    if mode == "CMYK":  # ink takes light away, black from what is left
        light = (255 - pixels[..., :3]) * (255 - pixels[..., 3:]) / 255
        assert np.abs(np.array(opened) - light).max() <= 1
    elif mode in ("L", "1"):
        grey = pixels * (255 if mode == "1" else 1)
        assert np.array_equal(np.array(opened), np.repeat(grey[..., None], 3, axis=-1))
    else:
        assert np.array_equal(np.array(opened), np.array(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Stored pixels are turned back by the operation that the tag's definition names."""
    upright = cutout(30, 50, (8, 6, 40, 25))
    a = np.array(upright)
    # Row 0 and column 0 of the stored image are, in turn: top-left, top-right, bottom-right,
    # bottom-left, left-top, right-top, right-bottom, left-bottom (TIFF 6.0, tag 274).
    stored = {
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.transpose(1, 0, 2),
        6: a.transpose(1, 0, 2)[::-1],
        7: a[::-1, ::-1].transpose(1, 0, 2),
        8: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    opened = images.open_image(path)
    assert np.array_equal(np.array(opened), a)
    assert opened.getexif().get(0x0112, 1) == 1  # or the next reader would turn it again
    assert np.array_equal(images.prepare(opened), reference(upright))
