"""Point-to-point ICP, as open3d's `registration_icp` does it, with most searches left out.

Between two iterations the points move by less and less, so most of them keep their neighbour. A
search remembers the distance to the second nearest; as long as a point has moved by less than what
lies between the two, its neighbour is known without another search. The result is the same.

Legend: N source points, M target points.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

# A search looks this many times as far as its answer counts: what it does not find then stays out
# of reach while the points move by half a reach.
_LOOK_AHEAD = 1.5


@dataclasses.dataclass(frozen=True)
class Criteria:
    """When points correspond, and when to stop: the numbers of DSO's evaluation.

    Attributes:
        reach: points further apart do not correspond; of an object of size 1.
        iterations: at most so many updates of the pose.
        fitness_change: stop once the share of source points with a partner changes by less...
        rmse_change: ... and the root mean square of their distances too.
    """

    reach: float = 0.02
    iterations: int = 50
    fitness_change: float = 1e-6
    rmse_change: float = 1e-6


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The rigid motion x -> rotation @ x + translation that was found.

    Attributes:
        rotation: proper.
        translation: in the unit of the points.
        fitness: share of source points with a partner within reach.
        rmse: root mean square distance of those, 0 if there are none.
        iterations: updates made.
        nearest: distance from each moved source point to its nearest target point.
    """

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]
    fitness: float
    rmse: float
    iterations: int
    nearest: Float[np.ndarray, " N"]


def align(
    source: Float[np.ndarray, "N 3"], target: cKDTree, criteria: Criteria | None = None
) -> Alignment:
    """Moves `source` onto the points of `target`, from where it is.

    Nothing moves where no point has a partner. Searches are several times faster if neighbours in
    `source` are neighbours in space.
    """
    criteria = criteria or Criteria()
    points, rotation, translation = source, np.eye(3), np.zeros(3)
    neighbours = _Neighbours(target, len(source))
    partners, distance = neighbours.of(points, criteria.reach)
    fitness, rmse = _quality(distance, criteria.reach)
    done = 0
    while done < criteria.iterations:
        done += 1
        near = distance < criteria.reach
        turn, shift = _rigid_fit(points[near], partners[near])
        rotation, translation = turn @ rotation, turn @ translation + shift
        points = points @ turn.T + shift
        before = fitness, rmse
        partners, distance = neighbours.of(points, criteria.reach)
        fitness, rmse = _quality(distance, criteria.reach)
        if (
            abs(fitness - before[0]) < criteria.fitness_change
            and abs(rmse - before[1]) < criteria.rmse_change
        ):
            break
    _, nearest = neighbours.of(points, np.inf)
    return Alignment(rotation, translation, fitness, rmse, done, nearest)


class _Neighbours:
    """Nearest target points of a set of source points that moves a little between calls."""

    def __init__(self, target: cKDTree, count: int):
        self._target = target
        # One more row, infinitely far: the neighbour that a search returns where it found none.
        self._points = np.concatenate([target.data, np.full((1, 3), np.inf)])
        self._asked = np.zeros((count, 3))  # where each point was when it was last searched for
        self._first = np.full((count, 3), np.inf)  # what was found
        self._second = np.full(count, -np.inf)  # nothing else was nearer than this

    def of(
        self, points: Float[np.ndarray, "N 3"], reach: float
    ) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, " N"]]:
        """The nearest and its distance; of those not within `reach` only that much is true."""
        distance = _norms(points - self._first)
        moved = _norms(points - self._asked)
        old = np.flatnonzero(~(np.minimum(distance, reach) + moved <= self._second))
        if len(old):
            look = _LOOK_AHEAD * reach
            asked = points[old]
            found, index = self._target.query(asked, k=2, distance_upper_bound=look)
            self._asked[old], self._first[old] = asked, self._points[index[:, 0]]
            self._second[old], distance[old] = np.minimum(found[:, 1], look), found[:, 0]
        return self._first, distance


def _norms(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, " N"]:
    return np.sqrt(np.einsum("ni,ni->n", vectors, vectors))


def _quality(distance: Float[np.ndarray, " N"], reach: float) -> tuple[float, float]:
    near = distance[distance < reach]
    return len(near) / len(distance), float(np.sqrt((near**2).mean())) if len(near) else 0.0


def _rigid_fit(
    source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """The proper rotation and shift that bring paired points closest in squares (Kabsch)."""
    if not len(source):
        return np.eye(3), np.zeros(3)
    middle, goal = source.mean(axis=0), target.mean(axis=0)
    left, _, right = np.linalg.svd((target - goal).T @ (source - middle))
    mirror = np.array([1.0, 1.0, np.linalg.det(left) * np.linalg.det(right)])
    turn = (left * mirror) @ right
    return turn, goal - turn @ middle
