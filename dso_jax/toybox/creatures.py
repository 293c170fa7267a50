"""Families with bodies: biped, flamingo, giraffe, bonsai. They look towards -y or +x.

Each function draws its continuous parameters from `rng` and returns the parts of one object,
24 to 28 voxels tall, with its feet on z = 0 (see shapes.py for the frame). No part is thinner
than about 2.4 voxels, so that a small autoencoder can keep it.
"""

from __future__ import annotations

import math

import numpy as np

from dso_jax.toybox.shapes import Box, Capsule, Ellipsoid, Frustum, Part


def biped(rng: np.random.Generator) -> list[Part]:
    """A figure on two short feet with a big head, uneven arms and sometimes a backpack."""
    u = rng.uniform
    stance, hip = u(2.0, 2.8), u(8.0, 10.5)
    foot_x, foot_y, foot_shift = u(1.3, 1.8), u(1.3, 2.2), u(-0.8, 0.6)
    shoulder = hip + u(7.0, 8.0)
    head = u(3.1, 3.7)
    head_y, head_x = u(-2.2, 1.0), u(-1.0, 1.0)
    top = min(shoulder + 2.0 * head + 0.3, 28.0)
    parts: list[Part] = []
    for side in (-1.0, 1.0):
        x = side * stance
        parts.append(Box((x, foot_shift, 1.25), (foot_x, foot_y, 1.25)))
        parts.append(Capsule((x, 0.0, 1.5), (side * stance * 0.8, 0.0, hip), 1.35, u(1.5, 1.9)))
        hand_y, hand_z = u(-5.5, 1.5), shoulder - u(0.0, 6.0)
        elbow = (side * (stance + 2.2), 0.4 * hand_y, 0.5 * (shoulder - 1.0 + hand_z) - 0.5)
        parts.append(Capsule((side * 2.2, 0.0, shoulder - 1.2), elbow, 1.5, 1.4))
        hand = (side * (stance + u(1.8, 3.2)), hand_y, hand_z)
        parts.append(Capsule(elbow, hand, 1.4, 1.4))
    torso = u(2.0, 2.7)
    parts.append(Capsule((0.0, 0.0, hip), (0.0, 0.0, shoulder - 1.5), torso, torso + 0.4))
    parts.append(Capsule((-stance * 0.8, 0.0, hip), (stance * 0.8, 0.0, hip), 1.8, 1.8))
    parts.append(Capsule((0.0, 0.0, shoulder - 2.0), (head_x, head_y, top - head), 1.5, 1.5))
    parts.append(Ellipsoid((head_x, head_y, top - head), (head, head, head)))
    if rng.random() < 0.5:
        depth = u(1.3, 2.2)
        parts.append(Box((0.0, torso + depth - 0.5, shoulder - 4.0), (2.4, depth, u(2.2, 3.2))))
    return parts


def flamingo(rng: np.random.Generator) -> list[Part]:
    """A bird on one leg: foot plate, egg body, curved neck, head with a beak towards +x."""
    u = rng.uniform
    foot_x, foot_y, toe = u(1.6, 2.8), u(1.4, 2.4), u(-0.5, 0.8)
    body_z, body_x = u(11.5, 13.5), u(-2.0, 0.8)
    rx, ry, rz = u(4.5, 6.0), u(2.9, 3.7), u(3.0, 3.8)
    rump = body_x - rx - 1.0
    neck_x, bend_x = body_x + u(3.5, 5.0), body_x + u(4.5, 7.0)
    top, head = u(25.0, 27.5), u(1.9, 2.4)
    head_x, sway = u(0.5, 5.0), u(-1.5, 1.5)
    beak = u(2.6, 3.8)
    middle = (bend_x, 0.5 * sway, 0.5 * (body_z + top) + 1.0)
    crown = (head_x, sway, top - head)
    return [
        Box((toe, 0.0, 1.25), (foot_x, foot_y, 1.25)),
        Capsule((0.0, 0.0, 1.5), (body_x + u(-0.5, 1.0), 0.0, body_z), 1.3, 1.5),
        Ellipsoid((body_x, 0.0, body_z), (rx, ry, rz)),
        Capsule((rump + 2.8, 0.0, body_z), (rump, 0.0, body_z + u(-1.0, 1.5)), 1.8, 1.2),
        Capsule((neck_x - 1.2, 0.0, body_z + 0.5), middle, 1.9, 1.4),
        Capsule(middle, crown, 1.4, 1.4),
        Ellipsoid(crown, (head, head, head)),
        Capsule(crown, (head_x + head + beak - 1.2, sway, top - head - u(0.5, 2.0)), 1.5, 1.2),
    ]


def giraffe(rng: np.random.Generator) -> list[Part]:
    """A quadruped with a narrow stance and a long neck that reaches over its front feet (+x)."""
    u = rng.uniform
    length, width = u(1.4, 1.9), u(1.2, 1.5)
    foot, belly = u(1.0, 1.2), u(0.8, 2.0)
    back = u(10.5, 12.5)
    girth = u(2.2, 2.9)
    top = u(25.5, 28.0)
    head_x, sway = length + u(2.0, 6.0), u(-3.0, 3.0)
    head = (head_x, sway, top - 2.1)
    parts: list[Part] = []
    for sx in (-1.0, 1.0):
        for sy in (-1.0, 1.0):
            x, y = sx * length, sy * width
            parts.append(Box((x, y, 1.25), (foot, foot, 1.25)))
            parts.append(Capsule((x, y, 1.0), (1.2 * x, y, back), 1.2, 1.4))
    parts.append(Capsule((-belly, 0.0, back), (length, 0.0, back + 0.6), girth, girth + 0.2))
    parts.append(Capsule((length - 0.3, 0.0, back + 0.5), head, u(2.0, 2.5), 1.7))
    parts.append(Capsule(head, (head_x + u(2.2, 3.6), sway, top - 2.6), 2.1, 1.6))
    parts.append(Capsule((-belly - 0.8, 0.0, back), (-belly - 2.0, 0.0, back - 4.0), 1.3, 1.2))
    if rng.random() < 0.5:
        rider = u(2.0, 2.6)
        seat = (u(-2.5, 0.5), 0.0, back + girth + rider - 0.8)
        parts.append(Ellipsoid(seat, (rider, rider, rider)))
    return parts


def bonsai(rng: np.random.Generator) -> list[Part]:
    """A tree in a small pot: bent trunk, two or three clouds of leaves off the axis."""
    u = rng.uniform
    pot, pot_top = u(2.0, 3.0), u(4.0, 5.5)
    heading = u(0.0, 2.0 * math.pi)
    reach, sweep = u(1.0, 3.5), u(-1.0, 1.0)
    crown_z, crown = u(20.5, 22.5), u(4.2, 5.6)
    bend = (reach * math.cos(heading), reach * math.sin(heading), u(9.0, 13.0))
    turn = heading + math.pi + sweep
    tip = (bend[0] + u(0, 3) * math.cos(turn), bend[1] + u(0, 3) * math.sin(turn), crown_z)
    parts: list[Part] = [
        Frustum(0.0, 0.0, 0.0, pot_top, pot, pot + u(0.3, 1.4)),
        Capsule((0.0, 0.0, pot_top - 1.0), bend, 1.8, 1.5),
        Capsule(bend, tip, 1.5, 1.4),
        Ellipsoid(tip, (crown, crown * u(0.8, 1.0), u(3.4, 4.6))),
    ]
    for _ in range(int(rng.integers(1, 3))):
        angle, far, z = u(0.0, 2.0 * math.pi), u(3.5, 5.5), crown_z - u(3.0, 7.0)
        leaf = (bend[0] + far * math.cos(angle), bend[1] + far * math.sin(angle), z)
        fork = (0.5 * (bend[0] + tip[0]), 0.5 * (bend[1] + tip[1]), z - 1.5)
        parts.append(Capsule(fork, leaf, 1.3, 1.3))
        parts.append(Ellipsoid(leaf, (u(2.6, 3.4), u(2.6, 3.4), u(2.0, 2.6))))
    return parts
