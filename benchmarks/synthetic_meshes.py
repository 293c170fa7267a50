"""A thousand different meshes from a fixed seed, a third of which fall: families with counts.

    python benchmarks/synthetic_meshes.py --out meshes          one PLY a mesh, z up
    python benchmarks/synthetic_meshes.py --out meshes --share 0.05

`FAMILIES` are the test set: convex and concave, thin, tall, tilted, off-centre, of several parts
that overlap or lie apart, nested. `BALANCED` are the solids of revolution and balanced pins, whose
labels hang on the last bits of their vertices in every engine; they are reported apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

SEED = 4

Make = Callable[[np.random.Generator], trimesh.Trimesh]


def box(size, at=(0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    """A box whose underside is centred at `at`."""
    x, y, z = at
    return trimesh.creation.box(
        extents=size, transform=trimesh.transformations.translation_matrix([x, y, z + size[2] / 2])
    )


def extrude(outline: np.ndarray, height: float, at=(0.0, 0.0, 0.0), top: float = 1.0):
    """A star-shaped outline (n, 2), anticlockwise, raised and scaled to `top` at its upper end."""
    count = len(outline)
    low = np.c_[outline, np.zeros(count)]
    high = np.c_[top * outline, np.full(count, height)]
    middle = [[0.0, 0.0, 0.0], [0.0, 0.0, height]]
    here = np.arange(count)
    after = np.roll(here, -1)
    foot, head = np.full(count, 2 * count), np.full(count, 2 * count + 1)
    sides = [[here, after, count + after], [here, count + after, count + here]]
    caps = [[foot, after, here], [head, count + here, count + after]]
    faces = np.concatenate([np.stack(triangle, axis=1) for triangle in sides + caps])
    return trimesh.Trimesh(np.concatenate([low, high, middle]) + at, faces, process=False)


def ring(sides: int, radius: float, phase: float = 0.0) -> np.ndarray:
    """A regular outline."""
    angle = phase + 2 * np.pi * np.arange(sides) / sides
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def prism(sides: int, radius: float, height: float, at=(0.0, 0.0, 0.0), top: float = 1.0):
    """A regular prism, or what is left of a pyramid where `top` is not 1."""
    return extrude(ring(sides, radius), height, at, top)


def hull_of(points: np.ndarray) -> trimesh.Trimesh:
    """The convex hull as a closed mesh."""
    return trimesh.convex.convex_hull(points[np.unique(ConvexHull(points).vertices)])


def join(*parts: trimesh.Trimesh) -> trimesh.Trimesh:
    """One mesh of parts, which stay closed surfaces of their own."""
    first = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = [part.faces + start for part, start in zip(parts, first[:-1], strict=True)]
    vertices = [part.vertices for part in parts]
    return trimesh.Trimesh(np.concatenate(vertices), np.concatenate(faces), process=False)


def lean(mesh: trimesh.Trimesh, x: float, y: float = 0.0) -> trimesh.Trimesh:
    """Shears upwards: the underside stays flat."""
    vertices = mesh.vertices.copy()
    vertices[:, :2] += vertices[:, 2:] * [x, y]
    return trimesh.Trimesh(vertices, mesh.faces, process=False)


def turned(mesh: trimesh.Trimesh, rotation: Rotation) -> trimesh.Trimesh:
    """Turned about the origin."""
    return trimesh.Trimesh(rotation.apply(mesh.vertices), mesh.faces, process=False)


def tilted(mesh: trimesh.Trimesh, random: np.random.Generator, most: float) -> trimesh.Trimesh:
    """Turned by up to `most` degrees about a horizontal axis."""
    azimuth = random.uniform(0, 2 * np.pi)
    axis = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    return turned(mesh, Rotation.from_rotvec(np.radians(random.uniform(0, most)) * axis))


def hulls(random):
    """Convex, of a dozen to two hundred points, cut flat below or not."""
    points = random.normal(size=(random.integers(12, 200), 3)) * random.uniform(0.4, 1.5, 3)
    if random.random() < 0.6:
        points[:, 2] = np.maximum(points[:, 2], np.quantile(points[:, 2], random.uniform(0.1, 0.4)))
    return hull_of(points)


def sheared_prisms(random):
    """Prisms and pyramids that lean, up to well beyond their foot."""
    body = prism(random.integers(3, 9), 1, random.uniform(0.8, 4), top=random.uniform(0.2, 1.6))
    return lean(body, *random.uniform(-0.7, 0.7, 2))


def tilted_boxes(random):
    """Set down on an edge or a corner."""
    return tilted(box(random.uniform(0.4, 2.0, 3)), random, 60)


def blobs(random):
    """Bumpy spheres, some with a flat underside."""
    mesh = trimesh.creation.icosphere(subdivisions=int(random.integers(2, 4)))
    points = mesh.vertices
    for _ in range(6):
        wave = random.normal(size=3) * random.uniform(1, 3)
        points = points * (1 + 0.12 * np.sin(points @ wave + random.uniform(0, 6)))[:, None]
    points = points * random.uniform(0.6, 1.4, 3)
    if random.random() < 0.6:
        points[:, 2] = np.maximum(points[:, 2], random.uniform(0.6, 0.9) * points[:, 2].min())
    return trimesh.Trimesh(points, mesh.faces, process=False)


def chairs(random):
    """Four thin legs, a seat, and a back that may be heavy and lean."""
    w, d, h, back = random.uniform([0.6, 0.3, 0.6, 0.6], [1.2, 1.0, 1.2, 2.2])
    leg, thick = random.uniform(0.04, 0.1), random.uniform(0.05, 0.25)
    spread = random.uniform(0.4, 1.0)
    feet = [
        (sx * (w - leg) / 2, sy * spread * (d - leg) / 2, 0) for sx in (-1, 1) for sy in (-1, 1)
    ]
    rest = lean(box((w, thick, back)), 0, random.uniform(-0.1, 0.5))
    rest.apply_translation((0, d / 2 - thick / 2, h))
    return join(*(box((leg, leg, h), foot) for foot in feet), box((w, d, 0.08), (0, 0, h)), rest)


def lamps(random):
    """A foot, a pole, and a shade held out to one side."""
    sides, foot, tall = random.integers(5, 14), random.uniform(0.2, 0.5), random.uniform(1.2, 2.5)
    out, shade = random.uniform(0, 1.1), random.uniform(0.2, 0.5)
    arm = box((out + 0.06, 0.06, 0.06), (out / 2, 0, tall))
    head = prism(
        sides, shade, random.uniform(0.2, 0.5), (out, 0, tall - 0.1), random.uniform(0.5, 1)
    )
    return join(prism(sides, foot, 0.08), box((0.06, 0.06, tall)), arm, head)


def tables(random):
    """Three to five legs of unequal length and place under a top that is off their middle."""
    count, tall = random.integers(3, 6), random.uniform(0.6, 1.4)
    places = ring(count, random.uniform(0.2, 0.7), random.uniform(0, 6))
    places += random.normal(scale=0.08, size=places.shape)
    drop = random.uniform(0, 0.08, count) * (random.random() < 0.5)
    legs = [box((0.07, 0.07, tall + d), (*p, -d)) for p, d in zip(places, drop, strict=True)]
    size = random.uniform([0.6, 0.6, 0.04], [1.5, 1.5, 0.12])
    return join(*legs, box(size, (*random.normal(scale=0.25, size=2), tall)))


def towers(random):
    """Stacked blocks, each a little off the one below."""
    parts, at = [], np.zeros(3)
    for _ in range(random.integers(3, 9)):
        size = random.uniform([0.4, 0.4, 0.2], [0.9, 0.9, 0.6])
        parts.append(turned(box(size), Rotation.from_euler("z", random.uniform(0, 1.5))))
        parts[-1].apply_translation(at)
        at += [*random.normal(scale=0.22, size=2), size[2]]
    return join(*parts)


def signs(random):
    """A thin plate upright on a small foot, or on two."""
    thick, wide, tall = random.uniform([0.02, 0.4, 0.5], [0.08, 1.2, 1.8])
    plate = lean(box((thick, wide, tall)), random.uniform(-0.5, 0.5))
    plate.apply_translation((random.uniform(-0.1, 0.1), random.uniform(-0.3, 0.3), 0.05))
    feet = random.integers(1, 3)
    long, broad = random.uniform(0.1, 0.6), random.uniform(0.1, 0.4)
    places = [0.0] if feet == 1 else [-0.3, 0.3]
    return join(plate, *(box((long, broad, 0.06), (0, y, 0)) for y in places))


def outlines(random):
    """Concave outlines, raised and tilted, or set on their rim as a wheel of a few teeth."""
    count = random.integers(7, 16)
    shape = ring(count, 1.0) * random.uniform(0.45, 1.0, count)[:, None]
    mesh = extrude(shape, random.uniform(0.3, 2.5), top=random.uniform(0.5, 1.3))
    if random.random() < 0.4:
        return turned(mesh, Rotation.from_euler("xz", [90, random.uniform(0, 90)], degrees=True))
    return tilted(lean(mesh, random.uniform(-0.7, 0.7)), random, 12)


def figures(random):
    """Two small feet, legs, a body and a head that lean forwards or backwards."""
    gap, tall, bulk = random.uniform([0.1, 0.5, 0.2], [0.3, 1.0, 0.45])
    long = random.uniform(0.1, 0.4)
    parts = []
    for y in (-gap, gap):
        parts += [box((long, 0.15, 0.06), (random.uniform(-0.03, 0.06), y, 0))]
        parts += [prism(6, 0.07, tall, (0, y, 0.03))]
    parts += [prism(8, bulk, random.uniform(0.5, 1), (0, 0, tall), random.uniform(0.6, 1.2))]
    head = trimesh.creation.icosphere(subdivisions=2, radius=random.uniform(0.15, 0.35))
    head.apply_translation((random.uniform(-0.1, 0.3), 0, tall + random.uniform(0.8, 1.1)))
    return lean(join(*parts, head), *(random.normal(scale=[0.14, 0.06])))


def scattered(random):
    """Parts that lie apart and fall as one body."""
    count = random.integers(3, 8)
    places = random.uniform([-1, -1, 0], [1, 1, 2.0], (count, 3))
    places[: random.integers(1, 4), 2] = 0.0
    return join(*(box(random.uniform(0.15, 0.8, 3), place) for place in places))


def nested(random):
    """A prism in another or through its side: what both fill, `legacy` counts twice."""
    inner = prism(random.integers(4, 10), 0.5, 1.0, (*random.uniform(-0.4, 0.4, 2), 0.3))
    outer = lean(prism(random.integers(3, 8), 1.0, 2.4, top=random.uniform(0.4, 1.3)),
                 *random.uniform(-1.2, 1.2, 2))  # fmt: skip
    return join(outer, inner)


def hoops(random):
    """Squashed rings, upright or lying crooked, with a small block on one side."""
    mesh = trimesh.creation.torus(1.0, random.uniform(0.1, 0.4), 24, 12)
    mesh = trimesh.Trimesh(mesh.vertices * random.uniform(0.6, 1.4, 3), mesh.faces, process=False)
    mesh = turned(mesh, Rotation.from_euler("x", 90 if random.random() < 0.6 else 0, degrees=True))
    mesh = tilted(mesh, random, 40)
    low = mesh.vertices[:, 2].min()
    return join(mesh, box(random.uniform(0.1, 0.4, 3), (*random.uniform(-0.6, 0.6, 2), low)))


def revolved(random):
    """Vases, cones, balls and bottles: profiles turned about the vertical."""
    height = np.sort(random.uniform(0, 2, random.integers(3, 8)))
    radius = random.uniform(0.05, 0.8, len(height))
    radius[0] = random.choice([0.0, 0.02, 0.3])
    profile = np.stack([radius, height], axis=1)
    profile = np.concatenate([[[0, height[0]]], profile, [[0, height[-1]]]])
    return trimesh.creation.revolve(profile, sections=int(random.choice([16, 32, 64, 128])))


def pins(random):
    """Balanced on a point or an edge to the last bit."""
    sides, tall = int(random.choice([4, 6, 12, 64])), random.uniform(0.5, 2)
    kind = random.integers(3)
    if kind == 0:
        return prism(sides, 0.02, tall, top=random.uniform(5, 30))
    if kind == 1:
        half = turned(box((1, 1, tall)), Rotation.from_euler("x", 45, degrees=True))
        return half
    disc = prism(sides, 1.0, random.uniform(0.05, 0.4))
    return turned(disc, Rotation.from_euler("x", 90, degrees=True))


FAMILIES: dict[str, tuple[int, Make]] = {
    "hulls": (110, hulls),
    "sheared_prisms": (90, sheared_prisms),
    "tilted_boxes": (70, tilted_boxes),
    "blobs": (100, blobs),
    "chairs": (90, chairs),
    "lamps": (90, lamps),
    "tables": (80, tables),
    "towers": (90, towers),
    "signs": (80, signs),
    "outlines": (80, outlines),
    "figures": (90, figures),
    "scattered": (50, scattered),
    "nested": (50, nested),
    "hoops": (50, hoops),
}
BALANCED: dict[str, tuple[int, Make]] = {"revolved": (35, revolved), "pins": (25, pins)}


def meshes(
    families: dict[str, tuple[int, Make]], share: float = 1.0, seed: int = SEED
) -> Iterator[tuple[str, str, trimesh.Trimesh]]:
    """Name, family and mesh; the first ones of each family for a share below 1.

    A mesh depends on the seed, its family's name and its number alone.
    """
    for family, (count, make) in families.items():
        for number in range(max(1, round(share * count))):
            random = np.random.default_rng([seed, *family.encode(), number])
            yield f"{family}-{number:03d}", family, make(random)


def write(folder: Path, families: dict[str, tuple[int, Make]], share: float = 1.0) -> list[Path]:
    """One file a mesh, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, _, mesh in meshes(families, share):
        paths.append(folder / f"{name}.ply")
        mesh.export(paths[-1])
    return paths


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--share", type=float, default=1.0, help="of each family")
    args = parser.parse_args()
    for families in (FAMILIES, BALANCED):
        print(f"{len(write(args.out, families, args.share))} meshes in {args.out}")


if __name__ == "__main__":
    main()
