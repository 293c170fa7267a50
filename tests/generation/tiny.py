"""A generator small enough for its samples to take milliseconds, and prompts for it."""

from __future__ import annotations

import queue
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from dso_jax import pretrained
from dso_jax.generation import prompts
from dso_jax.generation.prompt_sources import Loaded
from dso_jax.models import (
    DecoderConfig,
    DINOv2Config,
    FlowConfig,
    init_decoder,
    init_dinov2,
    init_flow,
)
from dso_jax.sampler import SamplerConfig
from sim_mjx.rest import Rest
from weight_port import files, to_torch

# Guided from beginning to end: one kind of step is half as much to compile.
SAMPLER = SamplerConfig(steps=2, guidance_weight=1.0, guidance_interval=(0.0, 1.0))
DINO = DINOv2Config(64, 1, 1, mlp_ratio=1.0, patch_size=7, image_size=14, num_registers=2)


def make_base() -> pretrained.Base:
    flow = FlowConfig(
        resolution=4,
        in_channels=2,
        out_channels=2,
        model_channels=12,
        cond_channels=5,
        num_blocks=1,
        num_heads=2,
        patch_size=2,
    )
    decoder = DecoderConfig(latent_channels=2, channels=(8, 4), num_res_blocks=0)
    key = jax.random.key(0)
    params = jax.tree.map(lambda x: x + 0.1, init_flow(flow, key))  # no layer starts at zero
    return pretrained.Base(
        name="tiny",
        flow_config=flow,
        flow_params=params,
        decoder_config=decoder,
        decoder_params=init_decoder(decoder, key),
        sampler=SAMPLER,
        sha256="0" * 64,
    )


def write_pipeline(folder: Path) -> None:
    """A generator that takes pictures, `folder`/base, and its encoder beside it."""
    flow = FlowConfig(
        resolution=2, model_channels=12, cond_channels=DINO.width, num_blocks=1, num_heads=3
    )
    decoder, key = DecoderConfig(channels=(4, 2), num_res_blocks=1), jax.random.key(0)
    models = {
        pretrained.FLOW: (flow, init_flow(flow, key)),
        pretrained.DECODER: (decoder, init_decoder(decoder, key)),
    }
    (folder / "base").mkdir()
    pretrained.save(folder / "base", models, SAMPLER, {})
    params = init_dinov2(DINO, jax.random.key(1))
    files.write(folder / "dino.safetensors", to_torch("dinov2", DINO, params))


def asked(count: int) -> prompts.Prompts:
    rng = np.random.default_rng(1)
    return prompts.Prompts(
        objects=np.array([f"thing-{i}" for i in range(count)]),
        views=np.zeros(count, np.int64),
        conditions=rng.normal(size=(count, 3, 5)).astype(np.float32),
        images=rng.integers(0, 255, (count, 4, 4, 3), np.uint8),
    )


class Source:
    """Prompts in memory, of which some cannot be used; a picture's first pixel is its number."""

    condition_shape: tuple[int, ...] = (3, 5)
    image_shape: tuple[int, ...] = (4, 4, 3)

    def __init__(self, count: int, broken: Iterable[int] = ()) -> None:
        self._asked, self._broken = asked(count), set(broken)
        self._asked.images[:, 0, 0, 0] = np.arange(count)
        self.objects, self.views = self._asked.objects, self._asked.views

    def load(self, blocks: Iterable[np.ndarray]) -> Generator[Loaded, None, None]:
        for rows in blocks:
            good = np.array([row for row in rows if row not in self._broken], np.int64)
            problems = tuple(f"{row}.png: broken" for row in rows if row in self._broken)
            yield Loaded(good, self._asked.images[good], problems)

    def conditions(self, images: np.ndarray, groups: Sequence[int]) -> np.ndarray:
        assert sum(groups) == len(images)
        return self._asked.conditions[images[:, 0, 0, 0]]


class Tipping:
    """Takes the place of `DropStream`: heavy bodies fall. For tests that are not about physics."""

    def __init__(self, protocol, *, progress, slots=None):
        self._progress, self._ended = progress, queue.Queue()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self._ended.put(None)

    def put(self, bodies, reasons, tag):
        count = len(bodies)
        angle = np.where(bodies.mass > 358, np.pi / 4, 0.0)  # half of 90 degrees about x
        zero = np.zeros(count)
        quaternion = np.stack([np.cos(angle), np.sin(angle), zero, zero], 1)
        place = np.zeros((count, 3))
        rest = Rest.from_states(place, quaternion, np.full(count, 9), angle == 0, reasons)
        self._progress(reasons.count(None))
        self._ended.put((tag, rest))

    def close(self):
        self._ended.put(None)

    def results(self):
        yield from iter(self._ended.get, None)
