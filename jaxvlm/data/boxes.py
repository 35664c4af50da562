"""Oriented boxes: what actions anchor to, whichever data set they come from."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxvlm.data.frames import Frame, rounded

# RoomPlan's walls, doors, windows and openings are flat; an anchor is a box.
SURFACE_DEPTH = 0.1
OBJECT = "object"


@dataclasses.dataclass(frozen=True)
class Box:
    """A thing of a scene; metres, z up.

    Attributes:
      name: unique in the scene.
      group: "object", "wall", "door", "window", "opening" or "plane".
      category: in words ("coffee table" is a table).
      centre: its middle.
      axes: rows: to its right (up × normal), up, and its normal, which is horizontal and the front.
        A horizontal surface has its normal up and the world's x as its first axis.
      size: full lengths along the axes.
      attributes: phrases that tell it from its like: ("swivel {}", "{} with armrests").
      parent: name of the box that it belongs to (a door's wall, a chair's table).
      open: a door that stands open.
    """

    name: str
    group: str
    category: str
    centre: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]
    size: Float[np.ndarray, "3"]
    attributes: tuple[str, ...] = ()
    parent: str | None = None
    open: bool = False

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """Its corners in the world."""
        signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        return self.centre + (signs * self.size / 2) @ self.axes

    def footprint(self) -> Float[np.ndarray, "4 2"]:
        """Its outline on the floor."""
        flat = [axis for axis in range(3) if abs(self.axes[axis, 2]) < 0.5]
        a, b = (self.axes[axis, :2] * self.size[axis] / 2 for axis in flat)
        return self.centre[:2] + np.array([-a - b, a - b, a + b, b - a])

    def distance(self, point: Float[np.ndarray, "3"]) -> float:
        """Metres from a point to the box; 0 inside."""
        local = np.abs(self.axes @ (point - self.centre)) - self.size / 2
        return float(np.linalg.norm(np.maximum(local, 0)))


def upright_axes(normal: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The rows of `Box.axes` for a front; a direction within 25° of up is a surface's normal."""
    normal = normal / np.linalg.norm(normal)
    if abs(normal[2]) > 0.9:
        return np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    flat = np.array([normal[0], normal[1], 0])
    flat /= np.linalg.norm(flat)
    up = np.array([0.0, 0, 1])
    return np.stack([np.cross(up, flat), up, flat])


def place_anchor(box: Box, scene: str, frame: Frame) -> dict:
    """The action that anchors to a box, its numbers in `frame`."""
    return {
        "action": "place_anchor",
        "scene": scene,
        "center": rounded(frame.points(box.centre), 4),
        "normal": rounded(frame.directions(box.axes[2]), 4),
        "extent": rounded(box.size, 4),
    }
