"""U2-Net's cutout equals a straight-line reference; what is missing or broken is said in a line."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dso_jax import background, image_files, images
from dso_jax.errors import UsageError

TINY = Path(__file__).parents[1] / "data" / "background" / "tiny_u2net.onnx"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(height: int, width: int, seed: int = 0, top: int = 256) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, top, (height, width, 3), dtype=np.uint8))


def tiny(batch: np.ndarray) -> np.ndarray:
    """The first output of tiny_u2net.onnx."""
    return batch[:, :1] * np.float32(0.5) - batch[:, 2:] * np.float32(0.25)


def reference_batch(picture: Image.Image) -> np.ndarray:
    """What U2-Net is given, after spec/trellis.md (section 5), channel by channel."""
    small = np.array(picture.resize((320, 320), Image.Resampling.LANCZOS)).astype(np.float64)
    small = small / small.max()
    batch = np.zeros((1, 3, 320, 320), np.float32)
    for channel in range(3):
        batch[0, channel] = (small[:, :, channel] - MEAN[channel]) / STD[channel]
    return batch


def reference_mask(picture: Image.Image) -> Image.Image:
    out = tiny(reference_batch(picture))[0, 0]
    out = (out - out.min()) / (out.max() - out.min())
    return Image.fromarray((out * 255).astype(np.uint8)).resize(
        picture.size, Image.Resampling.LANCZOS
    )


def reference_cutout(picture: Image.Image) -> np.ndarray:
    """Colours times alpha / 255, rounded, beside alpha."""
    alpha = np.array(reference_mask(picture)).astype(int)[..., None]
    colours = np.rint(np.array(picture) * alpha / 255)
    return np.concatenate([colours, alpha], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def remover():
    pytest.importorskip("onnxruntime")
    return background.u2net(TINY, threads=1)


@pytest.mark.parametrize(("height", "width", "top"), [(50, 70, 256), (400, 330, 256), (33, 9, 100)])
def test_the_cutout_equals_the_reference(remover, height, width, top):
    picture = noise(height, width, top=top)
    cutout = remover(picture)
    assert (cutout.mode, cutout.size) == ("RGBA", picture.size)
    assert np.array_equal(np.array(cutout), reference_cutout(picture))


@pytest.mark.parametrize("top", [256, 100])
def test_the_network_sees_the_picture_over_its_own_maximum(top):
    """The tiny network is linear, so that its stretched output alone cannot tell."""
    picture, seen = noise(50, 70, top=top), []

    def network(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return tiny(batch)

    background.mask(picture, network)
    assert seen[0].dtype == np.float32
    assert np.array_equal(seen[0], reference_batch(picture))


def test_alpha_enters_twice_on_the_way_to_the_prepared_image(remover):
    """The cutout is premultiplied, and composing it on black multiplies again."""
    pixels = np.full((400, 400, 3), 60, np.uint8)
    pixels[100:300, 100:300] = (250, 120, 20)  # red / 2 - blue / 4 is large here
    picture = Image.fromarray(pixels)
    cutout = reference_cutout(picture)
    mask = cutout[..., 3]
    rows, columns = np.nonzero(mask > 204)
    side = int(1.2 * (columns.max() - columns.min())) // 2 * 2
    corner = round(float((columns.min() + columns.max()) / 2 - side // 2))
    assert rows.min() == columns.min()  # so the crop is as far from the top as from the left
    square = cutout[corner : corner + side, corner : corner + side]
    scaled = Image.fromarray(square).resize((518, 518), Image.Resampling.LANCZOS)
    unit = np.array(scaled).astype(np.float32) / 255
    expected = (unit[..., :3] * unit[..., 3:] * 255).astype(np.uint8)
    result = images.prepare(picture, remover)
    assert np.array_equal(result, expected)
    edge = (np.array(scaled)[..., 3] > 60) & (np.array(scaled)[..., 3] < 200)
    assert edge.sum() > 100
    once = np.array(scaled)[edge][:, 0]  # as bright as one factor of alpha leaves it
    assert (result[edge][:, 0] < 0.9 * once).mean() > 0.95


def test_a_picture_of_one_colour_has_no_object(remover):
    for colour in ("black", "grey"):
        with pytest.raises(UsageError, match="no object"):
            images.prepare(Image.new("RGB", (40, 40), colour), remover)


def test_files_that_are_no_u2net_are_refused_by_name(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UsageError, match=r"none\.onnx: no such file"):
        background.u2net(tmp_path / "none.onnx")
    for name, data in {"empty.onnx": b"", "text.onnx": b"junk" * 50}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=rf"{name}: not a usable ONNX file") as caught:
            background.u2net(tmp_path / name)
        assert "\n" not in str(caught.value)
    whole = TINY.read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"half\.onnx: "):
        background.u2net(tmp_path / "half.onnx")


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ([1, 3, 320, 320], True),
        (["batch", 3, None, None], True),
        ([1, 3, 1024, 1024], False),
        ([1, 1, 320, 320], False),
        ([3, 320, 320], False),
    ],
)
def test_a_network_of_another_input_is_refused(monkeypatch, shape, fits):
    runtime = pytest.importorskip("onnxruntime")
    one = types.SimpleNamespace(name="input.1", shape=shape)
    session = types.SimpleNamespace(get_inputs=lambda: [one])
    monkeypatch.setattr(runtime, "InferenceSession", lambda *args, **options: session)
    if fits:
        assert callable(background.u2net(TINY))
    else:
        with pytest.raises(UsageError, match=r"tiny_u2net\.onnx: takes .*; U2-Net takes one"):
            background.u2net(TINY)


def test_what_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it raises ImportError
    with pytest.raises(UsageError, match=r"needs onnxruntime \(pip install 'dso-jax\[background"):
        background.u2net(TINY)
    with pytest.raises(UsageError, match=r"needs onnxruntime \(pip install 'rembg\[cpu\]'\)"):
        background.rembg_session()


class FakeRembg(types.ModuleType):
    """rembg's two functions; its own cutout is compared beside the real package, not here."""

    def __init__(self, error: Exception | None = None):
        super().__init__("rembg")
        self.__spec__ = types.SimpleNamespace(name="rembg")  # type: ignore[assignment]
        self.error, self.asked = error, 0

    def new_session(self, model: str) -> str:
        self.asked += 1
        if self.error:
            raise self.error
        return f"session of {model}"

    def remove(self, image: Image.Image, *, session: str) -> Image.Image:
        assert session == "session of u2net"
        return Image.new("RGBA", image.size, (1, 2, 3, 4))


def test_rembg_is_used_where_it_is_installed(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "rembg", FakeRembg())
    remover = background.find()
    assert remover is not None
    assert remover(noise(5, 6)).getpixel((0, 0)) == (1, 2, 3, 4)


def test_rembg_that_cannot_load_fails_only_the_images_that_need_it(monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    rembg = FakeRembg(ConnectionError("no route\nto host"))
    monkeypatch.setitem(sys.modules, "rembg", rembg)
    remover = background.find()
    paths = [tmp_path / f"{name}.png" for name in ("opaque", "cut", "opaque2")]
    for path in paths:
        picture = noise(20, 20)
        if path.stem == "cut":
            picture.putalpha(250)
        picture.save(path)
    first, cut, last = image_files.read_all(paths, image_files.prepared(remover), workers=2)
    assert cut.pixels is not None
    assert first.error == f"{paths[0]}: rembg: cannot load 'u2net' (no route)"
    assert last.error.startswith(f"{paths[2]}: rembg: cannot load")
    assert rembg.asked == 1  # a download that fails is not tried for every image


def test_find_takes_the_file_first_and_nothing_last(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "rembg", FakeRembg(AssertionError("not asked for")))
    chosen = background.find(TINY)
    assert chosen is not None
    assert chosen(noise(8, 8)).mode == "RGBA"
    monkeypatch.setattr(background.importlib.util, "find_spec", lambda name: None)
    assert background.find() is None
