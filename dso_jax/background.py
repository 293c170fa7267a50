"""Background removal: an RGB image -> its object on transparent ground.

Optional: images that come with transparency need none. `u2net` runs a U2-Net from an ONNX file,
`rembg_session` the package that TRELLIS uses; both give the same cutout.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from dso_jax.errors import UsageError

SIZE = 320  # edge of what U2-Net sees
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class Remover(Protocol):
    """RGB image -> RGBA cutout of the same size, its colours already multiplied by alpha.

    May be called by several threads at once; raises UsageError if it cannot work.
    """

    def __call__(self, image: Image.Image, /) -> Image.Image: ...


def find(model: Path | str | None = None) -> Remover | None:
    """The remover at hand: U2-Net of the file `model`, else rembg if it is installed, else None.

    rembg is loaded for the first image that needs it: it is slow to import and may have to
    download its model, and images with transparency need neither.

    Raises:
      UsageError: as `u2net`.
    """
    if model is not None:
        return u2net(model)
    return lazily(rembg_session) if importlib.util.find_spec("rembg") else None


def u2net(
    model: Path | str,
    *,
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Remover:
    """U2-Net (Qin et al. 2020) from an ONNX file, such as rembg's `u2net.onnx`.

    Args:
      threads: an image may use; 0 takes all cores. In a pool of many images take 1.
      providers: where onnxruntime may run it, best first. The accelerator is JAX's, so by default
        the CPU.

    Raises:
      UsageError: onnxruntime is not installed, or the file is missing or no such network.
    """
    runtime = _import("onnxruntime", "pip install 'dso-jax[background]'")
    if not Path(model).is_file():
        raise UsageError(f"{model}: no such file; expected a U2-Net .onnx file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        session = runtime.InferenceSession(str(model), options, providers=list(providers))
    except _failures(runtime) as error:
        raise UsageError(f"{model}: not a usable ONNX file ({_first_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or not _takes_pictures(inputs[0].shape):
        shapes = ", ".join(str(one.shape) for one in inputs)
        raise UsageError(f"{model}: takes {shapes}; U2-Net takes one [1, 3, {SIZE}, {SIZE}]")

    def saliency(batch: Float32[np.ndarray, "1 3 320 320"]) -> np.ndarray:
        return session.run(None, {inputs[0].name: batch})[0]

    def remove(image: Image.Image, /) -> Image.Image:
        return cut_out(image, mask(image, saliency))

    return remove


def rembg_session(model: str = "u2net") -> Remover:
    """A model of the optional package rembg, which downloads it at first use.

    Raises:
      UsageError: rembg is not installed or cannot get the model.
    """
    # rembg ends the process where onnxruntime is missing.
    _import("onnxruntime", "pip install 'rembg[cpu]'")
    rembg = _import("rembg", "pip install 'rembg[cpu]'")
    try:
        session = rembg.new_session(model)
    except (OSError, ValueError) as error:
        raise UsageError(f"rembg: cannot load {model!r} ({_first_line(error)})") from error

    def remove(image: Image.Image, /) -> Image.Image:
        return rembg.remove(image, session=session)

    return remove


def lazily(make: Callable[[], Remover]) -> Remover:
    """A remover made at its first use, once; if that fails, every use says why."""
    lock = threading.Lock()
    made: list[Remover | str] = []

    def remove(image: Image.Image, /) -> Image.Image:
        with lock:
            if not made:
                try:
                    made.append(make())
                except UsageError as error:
                    made.append(str(error))
        if isinstance(made[0], str):
            raise UsageError(made[0])
        return made[0](image)

    return remove


def mask(
    image: Image.Image, saliency: Callable[[Float32[np.ndarray, "1 3 320 320"]], np.ndarray]
) -> Image.Image:
    """Opacity (mode L, size of `image`): the network's first output, stretched to 0 .. 255.

    Args:
      image: RGB.
      saliency: the network; (1,1,320,320) out.
    """
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    out = saliency(_normalise(small))[0, 0]
    low, high = out.min(), out.max()
    # A network that sees nothing anywhere leaves nothing.
    stretched = (out - low) / (high - low) if high > low else np.zeros_like(out)
    levels = Image.fromarray((stretched * 255).astype(np.uint8))
    return levels.resize(image.size, Image.Resampling.LANCZOS)


def cut_out(image: Image.Image, opacity: Image.Image) -> Image.Image:
    """`image` over transparent black: the colours of half-opaque pixels are darkened too."""
    return Image.composite(image, Image.new("RGBA", image.size), opacity)


def _normalise(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "1 3 h w"]:
    """Over the image's own maximum (in float64, as rembg), then ImageNet's mean and deviation."""
    scaled = pixels / max(int(pixels.max()), 1e-6)
    return ((scaled - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None].astype(np.float32)


def _takes_pictures(shape: Sequence) -> bool:
    """A free axis is a name or None."""
    wanted = (1, 3, SIZE, SIZE)
    return len(shape) == 4 and all(
        not isinstance(have, int) or have == want for have, want in zip(shape, wanted, strict=True)
    )


def _import(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"background removal needs {name} ({install}): {error}") from error


def _failures(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions share no base class of their own."""
    kinds = vars(runtime.capi.onnxruntime_pybind11_state).values()
    return tuple(one for one in kinds if isinstance(one, type) and issubclass(one, Exception))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
