"""Files that cannot be used say why in one line; many are prepared at once, in order."""

import io
import itertools
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from dso_jax import image_files, images
from dso_jax.errors import UsageError
from tests.generation.pictures import Keyed, cutout, noise, png16, reference, saved

# --- files that cannot be used


def test_errors_name_the_file_and_the_reason(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.png: .*No such file"):
        images.open_image(tmp_path / "absent.png")
    with pytest.raises(UsageError, match=r"cannot be read as an image \(Is a directory\)"):
        images.open_image(tmp_path)
    for name, data in {"empty.png": b"", "text.png": b"# not an image\n" * 9}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=rf"{name}: damaged, or not an image of a known"):
            images.open_image(tmp_path / name)
    postscript = saved(tmp_path, Image.new("RGB", (4, 4)), "picture.eps")
    with pytest.raises(UsageError, match=r"picture\.eps: .*not an image of a known format"):
        images.open_image(postscript)  # Pillow would start Ghostscript
    real = saved(tmp_path, Image.fromarray(np.ones((3, 3), np.float32)), "real.tif")
    with pytest.raises(UsageError, match=r"real\.tif: .*floating-point pixels"):
        images.open_image(real)
    wide = saved(tmp_path, Image.fromarray(np.full((3, 3), 70000, np.int32)), "wide.tif")
    with pytest.raises(UsageError, match=r"wide\.tif: .*grey values outside 0 .. 65535"):
        images.open_image(wide)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("edge", [9460, 30000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, edge):
    """Pillow itself only warns of the first."""
    data = png16(2, np.zeros((1, 1, 3), np.uint16))
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    checked = b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(data[:12] + checked + data[33:])
    with pytest.raises(UsageError, match=r"bomb\.png: more than 89 million pixels"):
        images.open_image(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore")  # Pillow comments on broken tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000"])
def test_damaged_files_give_an_error_or_an_image_and_nothing_else(tmp_path, kind):
    rng = np.random.default_rng(5)
    buffer = io.BytesIO()
    Image.fromarray(noise(24, 20, 3)).save(buffer, kind)
    whole = buffer.getvalue()
    refused = 0
    for trial in range(60):
        data = bytearray(whole[: int(rng.integers(len(whole)))] if trial % 2 else whole)
        for _ in range(0 if trial % 2 else 3):
            data[int(rng.integers(min(len(data), 80)))] = int(rng.integers(256))
        path = tmp_path / "damaged"
        path.write_bytes(data)
        try:
            images.open_image(path)
        except UsageError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 20


# --- the pool


def test_files_come_in_order_with_their_errors(tmp_path):
    paths = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        if i % 4 == 2:
            path.write_bytes(b"broken")
        else:
            cutout(40 + i, 50, (4, 4, 30, 30), seed=i).save(path)
        paths.append(path)
    results = list(image_files.read_all(map(str, paths), image_files.prepared(), workers=3))
    assert [one.path for one in results] == paths
    for i, one in enumerate(results):
        if i % 4 == 2:
            assert one.pixels is None
            assert one.error.startswith(f"{paths[i]}: damaged")
        else:
            assert one.pixels is not None
            assert one.error == ""
            with Image.open(paths[i]) as picture:
                assert np.array_equal(one.pixels, reference(picture))


def test_files_are_found_by_name_folder_and_glob(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "b/notes.txt", "c/3.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = image_files.find([str(tmp_path / "c/*"), str(tmp_path), str(tmp_path / "b/notes.txt")])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["c/3.webp", "b/1.JPG", "b/2.png", "b/notes.txt"]
    for pattern, message in {"d.png": "no such file", "*.gif": "or match"}.items():
        with pytest.raises(UsageError, match=message):
            image_files.find([str(tmp_path / pattern)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: no image in this folder \(\.png"):
        image_files.find([str(tmp_path / "empty")])


def test_no_paths_no_results():
    assert list(image_files.read_all([], image_files.prepared())) == []


def test_the_pool_stays_a_few_images_ahead_and_stops_when_left(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    asked = itertools.count(1)
    endless = (tmp_path / "a.png" for _ in asked)
    results = image_files.read_all(endless, image_files.prepared(Keyed()), workers=2)
    for _ in range(5):
        assert next(results).pixels is not None
    results.close()
    assert next(asked) == 9  # five were taken, and of 2 x 2 the other three waited
    assert not [one for one in threading.enumerate() if one.name.startswith("images")]


def test_a_fault_in_a_remover_is_not_taken_for_a_bad_file(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (30, 30)))

    def broken(image: Image.Image, /) -> Image.Image:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(image_files.read_all([path], image_files.prepared(broken)))
