"""Rotation helpers on batches of wxyz quaternions, in numpy.

Legend: leading axes are free; a quaternion is (..., 4) in the order w, x, y, z, as MuJoCo's.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

Quaternion = Float[np.ndarray, "*batch 4"]


def to_matrix(quaternion: Quaternion) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices of unit quaternions."""
    q = np.asarray(quaternion, np.float64)
    flat = Rotation.from_quat(q.reshape(-1, 4)[:, [1, 2, 3, 0]]).as_matrix()
    return flat.reshape(*q.shape[:-1], 3, 3)


def from_matrix(matrix: Float[np.ndarray, "*batch 3 3"]) -> Quaternion:
    """Unit quaternions of rotation matrices, with w >= 0."""
    m = np.asarray(matrix, np.float64)
    flat = Rotation.from_matrix(m.reshape(-1, 3, 3)).as_quat(canonical=True)
    return flat[:, [3, 0, 1, 2]].reshape(*m.shape[:-2], 4)


def principal_axes(
    tensor: Float[np.ndarray, "*batch 3 3"],
) -> tuple[Float[np.ndarray, "*batch 3"], Quaternion]:
    """Principal moments, largest first as MuJoCo orders them, and the quaternion of their axes.

    The quaternion takes inertial-frame vectors to the frame that `tensor` is given in.
    """
    moments, axes = np.linalg.eigh(np.asarray(tensor, np.float64))
    moments, axes = moments[..., ::-1], axes[..., ::-1].copy()
    axes[..., 2] *= np.sign(np.linalg.det(axes))[..., None]
    return moments, from_matrix(axes)
