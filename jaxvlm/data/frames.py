"""Frames: where coordinates are measured from, and how actions are moved between frames.

A record's poses and its action are written in one frame:

- `"world"`: the data set's own, with its vertical axis in `up`.
- `"first_camera"`: origin at the first camera, turned about the vertical by that camera's yaw, Z
  up. Gravity stays known: the first camera's rotation keeps its pitch and roll.

`Frame` takes points of the world to the second and back. The model always learns actions in the
second, for the images do not reveal the first.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.data.actions.fields import Direction, Field, Point
from jaxvlm.data.actions.language import ACTIONS

FRAMES = ("world", "first_camera")
# Rotates a y-up world into a z-up one: (x, y, z) -> (x, -z, y).
Y_UP_TO_Z_UP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)
# How far R Rᵀ of a rotation may be off the identity.
NOT_ORTHONORMAL = 1e-2
# A tenth of a millimetre.
_DECIMALS = 4


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame within a world: `x_frame = rotation (x_world - origin)`, metres.

    Attributes:
      rotation: world to frame.
      origin: the frame's origin in the world.
    """

    rotation: Float[np.ndarray, "3 3"]
    origin: Float[np.ndarray, "3"]

    def points(self, world: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Points of the world in this frame."""
        return (world - self.origin) @ self.rotation.T

    def directions(self, world: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Directions of the world in this frame."""
        return world @ self.rotation.T

    def rotations(self, world: Float[np.ndarray, "... 3 3"]) -> Float[np.ndarray, "... 3 3"]:
        """Camera-to-world rotations as camera-to-frame rotations."""
        return self.rotation @ world

    def inverse(self) -> "Frame":
        """The world within this frame."""
        return Frame(self.rotation.T, -self.rotation @ self.origin)

    def to_world(self) -> Float[np.ndarray, "4 4"]:
        """The matrix that takes this frame's homogeneous points to the world."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation.T, self.origin
        return matrix

    @staticmethod
    def from_world(to_world: Float[np.ndarray, "4 4"]) -> "Frame":
        """The inverse of `to_world`."""
        matrix = np.asarray(to_world, np.float64)
        return Frame(matrix[:3, :3].T, matrix[:3, 3])


def upright(up: str) -> Float[np.ndarray, "3 3"]:
    """Turns a world with this vertical axis so that z is up."""
    return Y_UP_TO_Z_UP if up == "y" else np.eye(3)


def first_camera_frame(
    rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"], up: str = "z"
) -> Frame:
    """The level frame of a camera.

    Y points where the camera looks, projected on the floor; for a camera that looks straight
    down or up, where the top of its image points.

    Args:
      rotation: camera-to-world, camera axes x right, y down, z forward.
      translation: the camera's position in metres.
      up: the world's vertical axis, "z" or "y".
    """
    turned = upright(up) @ rotation
    forward = turned[:2, 2]
    if np.linalg.norm(forward) < 1e-3:
        forward = -turned[:2, 1]
    cos, sin = forward / max(np.linalg.norm(forward), 1e-12)
    level = np.array([[sin, -cos, 0], [cos, sin, 0], [0, 0, 1]], np.float64)
    return Frame(level @ upright(up), np.asarray(translation, np.float64))


def move_action(action: Mapping, frame: Frame) -> dict:
    """An action of the world in `frame` (with `frame.inverse()`, back).

    Its points are moved, its directions turned, everything else is kept: extents are measured along
    axes that follow from directions (see `with_axis`). Numbers are rounded to a tenth of a
    millimetre.
    """
    moved = dict(action)
    for name, kind in action_fields(action).items():
        change = {Point: frame.points, Direction: frame.directions}.get(type(kind))
        if change is not None and moved.get(name) is not None:
            moved[name] = rounded(change(np.asarray(moved[name], np.float64)), _DECIMALS)
    return moved


def action_fields(action: Mapping) -> Mapping[str, Field]:
    """The fields of its kind of action; a box without a name has those of an anchor."""
    return ACTIONS.get(action.get("action"), ACTIONS["place_anchor"]).known()


def with_axis(action: Mapping, up: str = "z") -> Mapping:
    """An action that says which way its level surface lies, if its kind has an `axis`.

    Without one that is the x of its frame, which is another direction once it is moved.

    Args:
      action: in metres.
      up: the vertical axis of its frame, "z" or "y".
    """
    normal = action.get("normal")
    if not normal or action.get("axis") is not None or "axis" not in action_fields(action):
        return action
    level = is_level(upright(up) @ np.asarray(normal, np.float64))
    return {**action, "axis": [1.0, 0.0, 0.0]} if level else action


def is_level(normal: Float[np.ndarray, "3"]) -> bool:
    """Whether a surface with this normal is level (z up): within 8° of it."""
    return bool(abs(normal[2]) > 0.99 * np.linalg.norm(normal) > 0)


def is_rotation(matrix: Float[np.ndarray, "... 3 3"]) -> bool:
    """Whether these are proper rotations; files write them with few digits."""
    matrix = np.asarray(matrix, np.float64)
    off = np.abs(matrix @ matrix.swapaxes(-1, -2) - np.eye(3)).max()
    return bool(off <= NOT_ORTHONORMAL and (np.linalg.det(matrix) > 0).all())


def rounded(values: Sequence | np.ndarray, decimals: int) -> list:
    """Numbers for a JSON file; no negative zeros."""
    return (np.round(np.asarray(values, np.float64), decimals) + 0.0).tolist()
