"""A generator small enough for its samples to take milliseconds, and prompts for it."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import jax
import numpy as np

from dso_jax import pretrained, prompts
from dso_jax.models import DecoderConfig, FlowConfig, init_decoder, init_flow
from dso_jax.prompt_sources import Loaded
from dso_jax.sampler import SamplerConfig


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
        sampler=SamplerConfig(steps=3, guidance_weight=1.0),
        sha256="0" * 64,
    )


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

    def conditions(self, images: np.ndarray) -> np.ndarray:
        return self._asked.conditions[images[:, 0, 0, 0]]
