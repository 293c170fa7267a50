"""A picture of one drop: the object as it starts and as it rests, and what it stands on.

Two shaded pictures, and below them the ground from above: the points that touch it, their hull (the
support polygon), and where the centre of mass is. It stands as long as that stays inside.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from dso_jax.report.pictures import UPRIGHT, Camera, Surface, draw, png, turned
from sim_mjx.explain import Footing
from sim_mjx.rest import Rest

SIZE = 360  # pixels of each panel
LINE = 22  # pixels of a line of text
PAPER, INK, FAINT = (255, 255, 255), (40, 44, 52), (150, 155, 165)
STANDS, FALLS, NEITHER = (92, 145, 110), (190, 92, 80), (140, 140, 150)
OTHER = (96, 104, 160)
GROUND = (226, 232, 240)
ROOM = 1.25  # width of a footprint's panel, in widths of what is drawn


class Drop(Protocol):
    """What the picture shows: `sim_mjx.explain.Explanation`, `dso_jax.evaluation.check.Outcome`."""

    @property
    def path(self) -> pathlib.Path: ...
    @property
    def rest(self) -> Rest: ...
    @property
    def stable(self) -> bool | None: ...
    @property
    def angle_deg(self) -> float: ...
    @property
    def margin_deg(self) -> float: ...
    @property
    def start(self) -> Footing: ...
    @property
    def end(self) -> Footing: ...


def drop_card(
    drop: Drop, surface: Surface, others: Mapping[str, Float[np.ndarray, " 3"]] | None = None
) -> bytes:
    """The picture as a PNG file.

    Args:
        drop: what the object does.
        surface: its mesh in the body frame.
        others: other places where the centre of mass may be at the start, by what to call them.
    """
    stable = drop.stable
    colour = NEITHER if stable is None else STANDS if stable else FALLS
    quaternion = drop.rest.quaternion[0]
    poses = [UPRIGHT, quaternion if np.isfinite(quaternion).all() else UPRIGHT]
    scale = 0.9 / max(float(np.ptp(surface.vertices, axis=0).max()), 1e-12)
    unit = Surface(surface.vertices * scale, surface.faces)
    camera = Camera(size=SIZE)
    pictures = [draw(turned(unit, pose), colour, camera) for pose in poses]
    card = Image.new("RGB", (2 * SIZE, 2 * SIZE + 3 * LINE), PAPER)
    ink = ImageDraw.Draw(card)
    label = {None: "no label", True: "stable", False: "unstable"}[stable]
    angle = drop.angle_deg
    ended = f"{angle:.2f} deg" if np.isfinite(angle) else str(drop.rest.reason[0])
    _write(ink, (8, 2), f"{drop.path.name}: {label}, {ended}")
    titles = ["at the start", f"at the end ({drop.rest.status[0]})"]
    feet = [_seen_from_above(drop.start, others or {}), _seen_from_above(drop.end, {})]
    for column, (title, picture, panel) in enumerate(zip(titles, pictures, feet, strict=True)):
        left = column * SIZE
        _write(ink, (left + 8, LINE), title)
        shaded = Image.fromarray(picture)
        card.paste(shaded, (left, 2 * LINE), shaded)
        card.paste(panel, (left, 2 * LINE + SIZE))
    margin = f"margin at the start {drop.margin_deg:.2f} deg"
    _write(ink, (8, 2 * (SIZE + LINE) + 2), f"from above: support and centre of mass; {margin}")
    return png(np.asarray(card))


def _seen_from_above(footing: Footing, others: Mapping[str, np.ndarray]) -> Image.Image:
    """The support polygon, the points that touch the ground, and the centre of mass."""
    panel = Image.new("RGB", (SIZE, SIZE), PAPER)
    ink = ImageDraw.Draw(panel)
    flat, com = footing.points[:, :2], footing.com[:2]
    drawn = np.concatenate([flat, com[None], *(other[None, :2] for other in others.values())])
    middle = (drawn.min(0) + drawn.max(0)) / 2
    width = max(float(np.ptp(drawn, axis=0).max()) * ROOM, 1e-9)

    def at(points: Float[np.ndarray, "n 2"]) -> list[tuple[float, float]]:
        pixels = SIZE / 2 + (points - middle) * [1, -1] * SIZE / width
        return [tuple(point) for point in pixels.tolist()]

    ink.rectangle((0, 0, SIZE - 1, SIZE - 1), outline=GROUND)
    if len(footing.corners):
        ink.polygon(at(footing.corners), fill=GROUND, outline=INK)
    for x, y in at(flat):
        ink.ellipse((x - 3, y - 3, x + 3, y + 3), fill=INK)
    ((x, y),) = at(com[None])
    places = {name: at(other[None, :2])[0] for name, other in others.items()}
    for names, (u, v) in _apart(places):
        if np.hypot(u - x, v - y) > LINE / 2:  # else it is where the cross is
            ink.ellipse((u - 4, v - 4, u + 4, v + 4), outline=OTHER, width=2)
            _write(ink, (round(min(u + 9, SIZE - 110)), round(v) - LINE), names, OTHER)
    inside = len(footing.corners) > 2 and _inside(footing.corners, com)
    colour = STANDS if inside else FALLS
    ink.line((x - 9, y, x + 9, y), fill=colour, width=3)
    ink.line((x, y - 9, x, y + 9), fill=colour, width=3)
    _write(ink, (8, SIZE - LINE), f"{width:.3g} m wide; points that touch: {len(flat)}", FAINT)
    return panel


def _apart(places: Mapping[str, tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    """Names and places, those that would be written over each other as one."""
    kept: list[tuple[str, tuple[float, float]]] = []
    for name, (x, y) in places.items():
        near = [
            i for i, (_, at) in enumerate(kept) if abs(at[1] - y) < LINE and abs(at[0] - x) < 90
        ]
        if near:
            kept[near[0]] = f"{kept[near[0]][0]}, {name}", kept[near[0]][1]
        else:
            kept.append((name, (x, y)))
    return kept


def _inside(corners: Float[np.ndarray, "m 2"], point: Float[np.ndarray, " 2"]) -> bool:
    """Whether a point is left of every edge of a counter-clockwise convex polygon."""
    edges, to_point = np.roll(corners, -1, axis=0) - corners, point - corners
    return bool((edges[:, 0] * to_point[:, 1] >= edges[:, 1] * to_point[:, 0]).all())


def _write(ink: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour=INK) -> None:
    ink.text(at, text, fill=colour, font=ImageFont.load_default(size=14))
