"""Image prompts: what a generator is asked for, and the true object where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from dso_jax import toybox


class Named(Protocol):
    """What has P prompts by name: see `Prompts`."""

    @property
    def objects(self) -> np.ndarray: ...

    @property
    def views(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Prompts:
    """P prompts, one image each.

    Attributes:
      objects: (P,) name of the object that each image shows.
      views: (P,) which image of that object.
      conditions: (P,S,D) what the flow attends to.
      images: (P,h,w,3) in [0, 1], for people.
      truth: (P,R,R,R) occupancy of the objects, or None where nobody knows it.
    """

    objects: np.ndarray
    views: np.ndarray
    conditions: Float[np.ndarray, "P S D"]
    images: Float[np.ndarray, "P h w 3"]
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, rows: slice | np.ndarray) -> Prompts:
        truth = None if self.truth is None else self.truth[rows]
        return Prompts(
            self.objects[rows], self.views[rows], self.conditions[rows], self.images[rows], truth
        )


def toybox_prompts(split: str, count: int, *, first: int = 0, view: int = 0) -> Prompts:
    """Objects `first` .. `first + count - 1` of a toybox split, each seen from one view."""
    seeds = toybox.split(split, first + count)[first:]
    solid = toybox.make_objects(seeds).astype(bool)
    images = toybox.render(solid, view)
    return Prompts(
        objects=toybox_names(seeds),
        views=np.full(count, view),
        conditions=toybox.condition(images),
        images=images,
        truth=solid,
    )


def toybox_names(seeds: Sequence[int]) -> np.ndarray:
    """What the objects of these seeds are called."""
    return np.array([f"toybox-{seed}" for seed in seeds])
