"""How like two meshes are: Chamfer distance and F-score as DSO's evaluation computes them.

Both meshes are centred on their bounding box and scaled to a longest side of 1, sampled on their
surfaces, and the generated one is moved onto the truth by ICP. Then, with d the distance to the
nearest sample of the other:

  chamfer    (mean d(generated -> truth) + mean d(truth -> generated)) / 2, not squared
  precision  share of generated samples with d < threshold; recall: of the truth's
  f_score    their harmonic mean, 0 where both are 0

A mesh compared with itself does not give 0: two sets of n samples of one surface of area A are
0.5 sqrt(A / n) apart on average (noise of a Poisson process in the plane; less where sheets lie
closer together than samples do). That floor stands beside every distance, as formula and measured.

Samples depend on the seed and the file's contents alone, so a truth is sampled the same for every
mesh that is compared with it, on any machine, in any order.

Legend: n samples a mesh.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

import numpy as np
import trimesh
from jaxtyping import Float, UInt64
from scipy.spatial import cKDTree

from dso_jax.evaluation.icp import Criteria, align
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh, upright
from sim_mjx.protocol import Protocol

UpAxis = Literal["auto", "x", "y", "z"]
# Points in a leaf of a tree: a tenth faster than with 16 once the points are in its order.
_LEAF = 32


@dataclasses.dataclass(frozen=True)
class GeometryConfig:
    """Every number that can change a distance. The defaults are the paper's evaluation.

    Attributes:
        points: samples a mesh.
        threshold: of the F-score, in units of the longest side.
        icp: when points correspond and when to stop.
        seed: of the samples.
        generated_up, truth_up: the files' up axes; `auto` goes by the format.
    """

    points: int = 10_000
    threshold: float = 0.05
    icp: Criteria = dataclasses.field(default_factory=Criteria)
    seed: int = 0
    generated_up: UpAxis = "auto"
    truth_up: UpAxis = "auto"

    def __post_init__(self):
        if self.points < 1:
            raise ValueError(f"geometry: points is {self.points}, expected at least 1")
        if not self.threshold > 0:
            raise ValueError(f"geometry: threshold is {self.threshold}, expected a positive number")


PAPER = GeometryConfig()
# With ten times the points the floor of a unit cube falls from .012 to .004, so that a threshold
# that sees thin parts (.01) is well above it.
FINE = GeometryConfig(points=100_000, threshold=0.01)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One pair, in units of the longest side; scores between 0 and 1.

    Attributes:
        chamfer: mean distance.
        f_score: harmonic mean of precision and recall.
        precision, recall: shares within the threshold.
        floor: 0.5 sqrt(area / points) of the truth.
        self_chamfer: distance between two samples of the truth: the floor, measured.
        icp_fitness: share of generated samples with a partner within reach after ICP.
        icp_turn_deg: how far ICP turned the generated mesh.
        icp_iterations: updates of the pose.
    """

    chamfer: float
    f_score: float
    precision: float
    recall: float
    floor: float
    self_chamfer: float
    icp_fitness: float
    icp_turn_deg: float
    icp_iterations: int


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A surface as points.

    Attributes:
        tree: of n points, in the tree's own order: neighbours in memory are neighbours in space,
            which makes searches for them several times faster.
        area: of the scaled surface.
        self_chamfer: mean distance of n other samples to these.
    """

    tree: cKDTree
    area: float
    self_chamfer: float

    @property
    def points(self) -> Float[np.ndarray, "n 3"]:
        return self.tree.data


def compare(generated: Mesh, truth: Mesh, config: GeometryConfig = PAPER) -> Geometry:
    """Measures one pair.

    Raises:
        BodyError: a mesh without extent or area.
    """
    return measure(sample_generated(generated, config), sample_truth(truth, config), config)


def sample_generated(mesh: Mesh, config: GeometryConfig) -> Sampled:
    """The samples of a mesh that is judged; see `sample_truth`."""
    return _sample(mesh, config, config.generated_up, "generated")


def sample_truth(mesh: Mesh, config: GeometryConfig) -> Sampled:
    """The samples of a mesh that others are compared with, independent of what they are.

    Raises:
        BodyError: no extent or no area.
    """
    return _sample(mesh, config, config.truth_up, "truth")


def measure(generated: Sampled, truth: Sampled, config: GeometryConfig) -> Geometry:
    """ICP from identity, then distances both ways."""
    found = align(generated.points, truth.tree, config.icp)
    # Moving the truth's points back spares a second tree.
    moved_back = (truth.points - found.translation) @ found.rotation
    missing = generated.tree.query(moved_back)[0]
    precision = float(np.mean(found.nearest < config.threshold))
    recall = float(np.mean(missing < config.threshold))
    both = precision + recall
    return Geometry(
        chamfer=float(found.nearest.mean() + missing.mean()) / 2,
        f_score=2 * precision * recall / both if both else 0.0,
        precision=precision,
        recall=recall,
        floor=noise_floor(truth.area, config.points),
        self_chamfer=truth.self_chamfer,
        icp_fitness=found.fitness,
        icp_turn_deg=_angle_deg(found.rotation),
        icp_iterations=found.iterations,
    )


def noise_floor(area: float, points: int) -> float:
    """Mean distance between two sets of `points` samples of one surface of this area."""
    return 0.5 * float(np.sqrt(area / points))


def unit_vertices(vertices: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Bounding box centred at the origin, longest side 1.

    Raises:
        BodyError: `flat` if all vertices coincide.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    extent = (high - low).max()
    if not extent > 0:
        raise BodyError("flat", "all vertices coincide")
    return (vertices - (low + high) / 2) / extent


def _sample(mesh: Mesh, config: GeometryConfig, up: UpAxis, role: str) -> Sampled:
    turned = upright(mesh.vertices, mesh.up if up == "auto" else up, Protocol())
    surface = trimesh.Trimesh(unit_vertices(turned), mesh.triangles, process=False)
    if not surface.area > 0:
        raise BodyError("no_area", "the triangles have no area")
    first, second = _seeds(mesh, config.seed, role)
    points = cKDTree(surface.sample(config.points, seed=first))
    tree = cKDTree(points.data[points.indices], _LEAF)
    if role != "truth":
        return Sampled(tree, float(surface.area), float("nan"))
    others = surface.sample(config.points, seed=second)
    return Sampled(tree, float(surface.area), float(tree.query(others)[0].mean()))


def _seeds(mesh: Mesh, seed: int, role: str) -> UInt64[np.ndarray, "2"]:
    """One a set of samples. A mesh in the other role, or compared with itself, has other ones."""
    digest = hashlib.sha256(f"{seed} {role} {mesh.sha256}".encode()).digest()
    return np.random.SeedSequence(int.from_bytes(digest[:16], "big")).generate_state(2, np.uint64)


def _angle_deg(rotation: Float[np.ndarray, "3 3"]) -> float:
    skew = rotation - rotation.T
    sine = np.linalg.norm([skew[2, 1], skew[0, 2], skew[1, 0]]) / 2
    return float(np.degrees(np.arctan2(sine, (np.trace(rotation) - 1) / 2)))
