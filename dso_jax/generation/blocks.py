"""Blocks of prompts -> conditions -> latents -> occupancy, a block for each device at a time.

A thread does this, so that the devices work on the next blocks while the last are written.

Shapes: m images and n samples of a block, S condition tokens, D width, C latent channels, r latent
edge, R occupancy edge.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections import abc, deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from dso_jax.dataset.layout import KEY
from dso_jax.dataset.shards import all_finite
from dso_jax.generation import generate
from dso_jax.generation.ahead import ahead
from dso_jax.generation.batches import Progress
from dso_jax.generation.generator import Generator
from dso_jax.generation.prompt_sources import Loaded, Source
from dso_jax.stopwatch import Stopwatch


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is made of each prompt.

    Attributes:
        samples: draws of each.
        first: number of the first draw; more draws of the same prompts begin behind the last.
        seed: of the noise, with object, view and number of the draw.
        store: what is kept of a prompt: its condition, its picture, from which a training run
            computes conditions, or both.
    """

    samples: int = 4
    first: int = 0
    seed: int = 0
    store: Literal["conditions", "images", "both"] = "conditions"


@dataclasses.dataclass(frozen=True)
class Made:
    """The samples of a block; none if no prompt of it could be used.

    Attributes:
        lines: column of the dataset's table -> (n,): those that are known before labels are.
        images: (m,h,w,3) the prompts' pictures.
        problems: one line for each prompt and sample that was left out.
    """

    lines: dict[str, np.ndarray]
    images: np.ndarray
    conditions: Float[np.ndarray, "m S D"]
    latents: Float[np.ndarray, "n C r r r"]
    logits: Float[np.ndarray, "n R R R"]
    problems: tuple[str, ...]


def make(
    generator: Generator,
    source: Source,
    recipe: Recipe,
    blocks: Iterable[tuple[int, np.ndarray]],
    watch: Stopwatch,
) -> abc.Generator[tuple[int, Made], None, None]:
    """The samples of blocks, in order. Closing it ends the work after the batch in the network.

    Args:
        blocks: number of each and its prompts; asked for a little ahead, by another thread.
        watch: counts the stages.
    """
    asked: deque[int] = deque()
    stop = threading.Event()

    def rows() -> Iterator[np.ndarray]:
        for number, prompts in blocks:
            asked.append(number)
            yield prompts

    def going_on(_: int) -> None:
        if stop.is_set():
            raise RuntimeError("nobody waits for these samples any more")

    def rounds() -> abc.Generator[list[tuple[int, Made]], None, None]:
        with contextlib.closing(source.load(rows())) as loading:
            while True:
                with watch("images"):
                    taken = list(itertools.islice(loading, len(generator.flow)))
                if not taken:
                    return
                numbers = [asked.popleft() for _ in taken]
                made = _round(generator, source, recipe, taken, watch, going_on)
                yield list(zip(numbers, made, strict=True))

    with contextlib.closing(ahead(rounds(), stop)) as made:
        for one in made:
            yield from one


def _round(
    generator: Generator,
    source: Source,
    recipe: Recipe,
    taken: list[Loaded],
    watch: Stopwatch,
    progress: Progress,
) -> list[Made]:
    """Several blocks at once, so that all devices have something to do."""
    full = [loaded for loaded in taken if len(loaded.rows)]
    if not full:
        return [_nothing(loaded) for loaded in taken]
    lines = [_lines(source, recipe, loaded.rows) for loaded in full]
    seeds = np.concatenate([one["seed"] for one in lines])
    images = [len(loaded.rows) for loaded in full]
    with watch("conditions"):
        pictures = [loaded.images for loaded in full]
        together = pictures[0] if len(full) == 1 else np.concatenate(pictures)
        conditions = source.conditions(together, images).astype(generator.dtype, copy=False)
    with watch("sampling"):
        latents = generator.latents(conditions, seeds, images, progress)
    samples = [recipe.samples * count for count in images]
    with watch("decoding"):
        logits = generator.logits(latents, samples, progress)
    ends = np.cumsum(samples)[:-1]
    parts = [np.split(conditions, np.cumsum(images)[:-1])]
    parts += [np.split(latents, ends), np.split(logits, ends)]
    made = map(_finite, full, lines, *parts)
    return [next(made) if len(loaded.rows) else _nothing(loaded) for loaded in taken]


def _lines(source: Source, recipe: Recipe, prompts: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.repeat(prompts, recipe.samples)
    number = np.tile(np.arange(recipe.first, recipe.first + recipe.samples), len(prompts))
    return {
        "object": source.objects[rows],
        "view": source.views[rows],
        "sample": number,
        "seed": generate.sample_seeds(source, rows, number, recipe.seed),
        "condition_row": np.repeat(np.arange(len(prompts)), recipe.samples),
    }


def _finite(
    loaded: Loaded,
    lines: dict[str, np.ndarray],
    conditions: np.ndarray,
    latents: np.ndarray,
    logits: np.ndarray,
) -> Made:
    """Without the samples that overflowed, which nothing could be learned from."""
    good = np.array([all_finite(one) for one in latents])
    keep = slice(None) if good.all() else good  # a slice copies nothing
    bad = zip(*(lines[name][~good] for name in KEY), strict=True)
    problems = [f"sample {':'.join(map(str, key))}: the latent is not finite" for key in bad]
    return Made(
        lines={name: values[keep] for name, values in lines.items()},
        images=loaded.images,
        conditions=conditions,
        latents=latents[keep],
        logits=logits[keep],
        problems=(*loaded.problems, *problems),
    )


def _nothing(loaded: Loaded) -> Made:
    none: Any = np.zeros(0)
    return Made({}, none, none, none, none, loaded.problems)
