"""Oriented boxes: what actions anchor to, whichever data set they come from."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull

from jaxvlm.data.actions.fields import DIRECTION, POINT, SIZE
from jaxvlm.data.frames import Frame, is_level, move_action, rounded, upright, with_axis
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError

# RoomPlan's walls, doors, windows and openings are flat; an anchor is a box.
SURFACE_DEPTH = 0.1
OBJECT = "object"
# Numbers of a box that is learnt: centre, extent and normal.
BOX = 9


@dataclasses.dataclass(frozen=True)
class Box:
    """A thing of a scene; metres, z up.

    Attributes:
      name: unique in the scene.
      group: "object", "wall", "door", "window", "opening" or "plane".
      category: in words ("coffee table" is a table).
      centre: its middle.
      axes: rows: to its right (up × normal), upwards (normal × right), and its normal: the front
        of an object, which is horizontal. A level surface has an axis of its own for its right.
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

    def footprint(self) -> Float[np.ndarray, "N 2"]:
        """Its outline on the floor."""
        flat = [axis for axis in range(3) if abs(self.axes[axis, 2]) < 1e-6]
        if len(flat) != 2:
            corners = self.corners()[:, :2]
            return corners[ConvexHull(corners).vertices]
        a, b = (self.axes[axis, :2] * self.size[axis] / 2 for axis in flat)
        return self.centre[:2] + np.array([-a - b, a - b, a + b, b - a])

    def distance(self, point: Float[np.ndarray, "3"]) -> float:
        """Metres from a point to the box; 0 inside."""
        local = np.abs(self.axes @ (point - self.centre)) - self.size / 2
        return float(np.linalg.norm(np.maximum(local, 0)))


def distinct(boxes: Iterable[tuple[Box, str]]) -> list[Box]:
    """Boxes with the places they were read from, each name once.

    Raises:
      UserError: two different boxes have one name.
    """
    found: dict[str, tuple[Box, str]] = {}
    for box, where in boxes:
        first, place = found.setdefault(box.name, (box, where))
        if not np.allclose(first.corners(), box.corners(), atol=1e-3) or (
            first.category != box.category
        ):
            raise UserError(f"{where}: the identifier {box.name!r} is that of {place}, too")
    return [box for box, _ in found.values()]


def box_axes(
    normal: Float[np.ndarray, "3"], axis: Float[np.ndarray, "3"] | None = None
) -> Float[np.ndarray, "3 3"]:
    """The rows of `Box.axes` for a normal, z up.

    Args:
      normal: any direction.
      axis: the first axis of a level surface; None for the world's x. Of no account otherwise.
    """
    normal = normal / np.linalg.norm(normal)
    if is_level(normal):
        x = np.array([1.0, 0, 0])
        right = x if axis is None else np.asarray(axis, np.float64)
        right = right - (right @ normal) * normal
        if np.linalg.norm(right) < 1e-6:
            # An axis along the normal says nothing.
            right = x - (x @ normal) * normal
    else:
        right = np.cross([0.0, 0, 1], normal)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(normal, right), normal])


def flattened(normal: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """A front without what little it is tilted: things stand upright."""
    return np.array([normal[0], normal[1], 0.0])


def record_box(record: Record) -> Box | None:
    """The box of a record's action, in its frame turned to z up; None without one."""
    return action_box(record.action, record.up, (*record.object_names, "")[0])


def world_box(record: Record, action: object, name: str = "") -> Box | None:
    """The box of an action about a record, in the world: records of a scene may have frames of
    their own.

    Args:
      record: what was asked.
      action: in the record's frame, see `action_box`.
      name: of the box.
    """
    box, to_world = action_box(action, record.up, name), record.frame_to_world
    if box is None or to_world is None:
        return box
    moved = move_action(with_axis(action, record.up), Frame.from_world(to_world).inverse())
    # Where the frame's vertical axis, the third once it is turned to z up, points in the world.
    vertical = to_world[:3, :3] @ upright(record.up)[2]
    return action_box(moved, "y" if vertical[1] > 0.9 else "z", name)


def middle_box(boxes: Sequence[Box]) -> Box:
    """The box whose centre is nearest to the median of all."""
    centres = np.stack([box.centre for box in boxes])
    off = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    return boxes[int(off.argmin())]


def action_box(action: object, up: str = "z", name: str = "") -> Box | None:
    """The box of an action, whoever made it; None for what has none.

    Args:
      action: an object of JSON with `center`, `normal` and `extent` in metres.
      up: the vertical axis of its frame, which is turned to z up.
      name: of the box and its category.
    """
    if not isinstance(action, Mapping):
        return None
    fields = {"center": POINT, "normal": DIRECTION, "extent": SIZE}
    if any(kind.malformed(action.get(field)) for field, kind in fields.items()):
        return None
    turn = upright(up)
    centre, normal = (turn @ np.array(action[field], float) for field in ("center", "normal"))
    axis = action.get("axis")
    axis = None if DIRECTION.malformed(axis) else turn @ np.array(axis, float)
    axes = box_axes(normal, axis)
    return Box(name, OBJECT, name, centre, axes, np.array(action["extent"], np.float64))


def action_numbers(action: Mapping) -> Float[np.ndarray, "9"] | None:
    """Centre, extent and normal of an action's box; None for an action that has none."""
    fields = [action.get(name) for name in ("center", "extent", "normal")]
    return None if None in fields else np.concatenate(fields).astype(np.float32)


def place_anchor(box: Box, scene: str, frame: Frame) -> dict:
    """The action that anchors to a box, its numbers in `frame`."""
    action = {
        "action": "place_anchor",
        "scene": scene,
        "center": box.centre.tolist(),
        "normal": box.axes[2].tolist(),
        "extent": rounded(box.size, 4),
    }
    if is_level(box.axes[2]):
        action["axis"] = box.axes[0].tolist()
    return move_action(action, frame)
