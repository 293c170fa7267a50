"""Families of things: lamp, chair, goblet, sign, table, tripod, tower.

The rules of creatures.py hold: 24 to 28 voxels tall, feet on z = 0, nothing thinner than about
2.4 voxels.
"""

from __future__ import annotations

import math

import numpy as np

from dso_jax.toybox.shapes import Box, Capsule, Ellipsoid, Frustum, Part, Ring

TAU = 2.0 * math.pi


def lamp(rng: np.random.Generator) -> list[Part]:
    """A floor lamp: round base, thin pole, a shade that hangs off the axis."""
    u = rng.uniform
    base, base_top, pole = u(2.0, 3.3), u(2.0, 3.4), u(1.25, 1.5)
    heading, reach = u(0.0, TAU), u(0.0, 3.5)
    x, y = reach * math.cos(heading), reach * math.sin(heading)
    top, tall = u(25.0, 28.0), u(6.0, 9.0)
    wide, narrow = u(4.6, 6.2), u(2.2, 4.0)
    return [
        Frustum(0.0, 0.0, 0.0, base_top, base, base),
        Capsule((0.0, 0.0, 1.0), (0.0, 0.0, top - tall - 1.5), pole, pole),
        Capsule((0.0, 0.0, top - tall - 1.5), (x, y, top - tall + 1.5), pole, pole),
        Frustum(x, y, top - tall, top, wide, narrow),
    ]


def chair(rng: np.random.Generator) -> list[Part]:
    """A chair with four close legs and a tall, heavy back at +y; sometimes arm rests."""
    u = rng.uniform
    half_x, half_y, leg = u(2.4, 3.8), u(1.5, 2.3), u(1.2, 1.4)
    inset_x, inset_y = u(0.0, 1.0), u(0.0, 0.8)
    seat, thick = u(9.5, 12.0), u(1.25, 1.7)
    top, back, rake = u(25.0, 28.0), u(1.25, 1.9), u(0.5, 4.0)
    parts: list[Part] = []
    for sx in (-1.0, 1.0):
        for sy in (-1.0, 1.0):
            x, y = sx * (half_x - inset_x), sy * (half_y - inset_y)
            parts.append(Box((x, y, seat / 2.0), (leg, leg, seat / 2.0)))
    seat_y = half_y + leg
    parts.append(Box((0.0, 0.0, seat), (half_x + leg, seat_y, thick)))
    middle = 0.5 * (seat + top)
    slab = (half_x + leg - 0.3, back, top - middle)
    parts.append(Box((0.0, seat_y - back + 0.5 * rake, middle), slab, rake=0.5 * rake))
    if rng.random() < 0.4:
        rest = seat + u(4.0, 6.0)
        for sx in (-1.0, 1.0):
            x = sx * (half_x + leg - 1.2)
            parts.append(Box((x, 0.0, rest), (1.25, seat_y, 1.25)))
            prop = 0.5 * (rest - seat)
            parts.append(Box((x, 1.25 - seat_y, seat + prop), (1.25, 1.25, prop)))
    return parts


def goblet(rng: np.random.Generator) -> list[Part]:
    """A goblet or vase: narrow round foot, stem, bulging bowl, lip, often one handle."""
    u = rng.uniform
    foot, foot_top, stem = u(1.7, 2.8), u(2.0, 3.5), u(1.3, 1.9)
    neck = u(5.0, 9.0)
    belly, belly_z = u(4.6, 6.8), neck + u(5.0, 7.0)
    top, lip = u(24.5, 28.0), u(3.0, 5.5)
    heading, off = u(0.0, TAU), u(0.0, 1.6)
    x, y = off * math.cos(heading), off * math.sin(heading)
    parts: list[Part] = [
        Frustum(0.0, 0.0, 0.0, foot_top, foot, foot),
        Frustum(0.0, 0.0, foot_top - 0.5, neck + 1.5, stem, stem + 0.4),
        Ellipsoid((x, y, belly_z), (belly, belly, belly_z - neck)),
        Frustum(x, y, belly_z, top - 2.5, min(belly * 0.85, 4.5), u(2.0, 3.0)),
        Frustum(x, y, top - 4.5, top, 2.2, lip),
    ]
    if rng.random() < 0.6:
        yaw, size = u(0.0, TAU), u(2.8, 3.8)
        far = belly + 0.6
        centre = (x + far * math.cos(yaw), y + far * math.sin(yaw), belly_z + 1.0)
        parts.append(Ring(centre, size, 1.25, yaw))
    return parts


def sign(rng: np.random.Generator) -> list[Part]:
    """A sign post on a small cross of feet with a board (or two) off the post."""
    u = rng.uniform
    reach_x, reach_y, post = u(2.2, 3.8), u(1.6, 2.6), u(1.25, 1.6)
    top, tall = u(25.0, 28.0), u(5.5, 9.0)
    half, off_x, off_y = u(5.5, 7.5), u(-3.0, 3.0), u(-1.6, 0.6)
    thick = u(1.25, 1.7)
    parts: list[Part] = [
        Box((0.0, 0.0, 1.25), (reach_x, 1.4, 1.25)),
        Box((0.0, 0.0, 1.25), (1.4, reach_y, 1.25)),
        Box((0.0, 0.0, 0.5 * top - 0.5), (post, post, 0.5 * top - 0.5)),
        Box((off_x, off_y, top - tall / 2.0), (half, thick, tall / 2.0)),
    ]
    if rng.random() < 0.4:
        low = top - tall - u(2.5, 5.0)
        side = u(-4.0, 4.0)
        parts.append(Box((side, off_y, low), (u(3.5, 5.0), thick, 1.5)))
    return parts


def table(rng: np.random.Generator) -> list[Part]:
    """A bar table: small foot, pedestal, round or square top off the axis, often with a jug."""
    u = rng.uniform
    foot, foot_top, pole = u(2.0, 3.3), u(2.0, 3.2), u(1.3, 1.8)
    heading, off = u(0.0, TAU), u(0.0, 2.5)
    x, y = off * math.cos(heading), off * math.sin(heading)
    jug = rng.random() < 0.6
    deck = u(19.5, 22.0) if jug else u(24.5, 27.0)
    wide, thick = u(6.0, 8.5), u(1.25, 1.6)
    parts: list[Part] = [
        Frustum(0.0, 0.0, 0.0, foot_top, foot, foot),
        Frustum(0.0, 0.0, 1.0, deck, pole, pole + u(0.0, 0.8)),
    ]
    if rng.random() < 0.5:
        parts.append(Frustum(x, y, deck - thick, deck + thick, wide, wide))
    else:
        parts.append(Box((x, y, deck), (0.85 * wide, 0.85 * wide, thick), u(-0.3, 0.3)))
    if jug:
        angle, far, size = u(0.0, TAU), u(0.0, 4.0), u(1.8, 2.6)
        jx, jy = x + far * math.cos(angle), y + far * math.sin(angle)
        parts.append(Frustum(jx, jy, deck, u(25.5, 28.0), size, size - u(-0.4, 0.5)))
    return parts


def tripod(rng: np.random.Generator) -> list[Part]:
    """Three splayed legs with round feet, a column, and a telescope that points anywhere."""
    u = rng.uniform
    spread, turn, foot = u(2.0, 3.0), u(0.0, TAU / 3.0), u(1.25, 1.5)
    apex = u(12.0, 15.0)
    heading, front, rear = u(0.0, TAU), u(6.0, 9.0), u(0.0, 2.5)
    pitch = u(-0.15, 0.6)
    eye = u(21.0, 23.5)
    cx, cy = math.cos(heading), math.sin(heading)
    muzzle = (front * cx, front * cy, min(eye + pitch * front, 25.0))
    tail = (-rear * cx, -rear * cy, eye - pitch * rear)
    parts: list[Part] = []
    for i in range(3):
        angle = turn + i * TAU / 3.0
        x, y = spread * math.cos(angle), spread * math.sin(angle)
        parts.append(Frustum(x, y, 0.0, 2.5, foot, foot))
        hub = (0.6 * math.cos(angle), 0.6 * math.sin(angle), apex)
        parts.append(Capsule((x, y, 1.2), hub, 1.25, 1.4))
    parts.append(Capsule((0.0, 0.0, apex - 1.0), (0.0, 0.0, eye), 1.5, 1.5))
    parts.append(Capsule(tail, muzzle, u(1.5, 2.0), u(2.2, 3.0)))
    return parts


def tower(rng: np.random.Generator) -> list[Part]:
    """Four to six stacked blocks, narrow and wide by turns, each a little off the last."""
    u = rng.uniform
    count = int(rng.integers(4, 7))
    top = u(24.5, 28.0)
    heights = u(0.7, 1.3, count)
    heights[0] *= 0.7
    levels = np.concatenate([[0.0], np.cumsum(heights / heights.sum() * top)])
    x = y = 0.0
    parts: list[Part] = []
    for i in range(count):
        low, high = (3.6, 5.2) if i % 2 else (1.8, 3.0)
        half_x, half_y = u(low, high), u(low, high)
        z = 0.5 * (levels[i] + levels[i + 1])
        # Half a voxel of overlap keeps neighbours joined whatever the rounding.
        half_z = 0.5 * (levels[i + 1] - levels[i]) + (0.3 if i else 0.0)
        if i and rng.random() < 0.35:
            parts.append(Frustum(x, y, z - half_z, z + half_z, half_x, 0.5 * (half_x + half_y)))
        else:
            parts.append(Box((x, y, z), (half_x, half_y, half_z), u(-0.5, 0.5) if i else 0.0))
        x, y = x + u(-1.8, 1.8), y + u(-1.8, 1.8)
    return parts
