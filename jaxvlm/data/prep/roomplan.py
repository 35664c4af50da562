"""Apple RoomPlan exports: a CapturedRoom or CapturedStructure as JSON.

Metres, y up; a transform is column-major, its columns are width axis, height axis, normal and
position of the centre. Everything is turned to z up here. Surfaces are given a thickness.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxvlm.data.boxes import OBJECT, SURFACE_DEPTH, Box, box_axes, distinct
from jaxvlm.data.frames import Y_UP_TO_Z_UP, is_rotation
from jaxvlm.data.prep.files import numbers_of, read_json
from jaxvlm.errors import UserError

# Metres: no wall is longer, no flat farther from where its scan began.
# An action says lengths to 99.99 m; what is longer is in other units.
_LARGEST, _FARTHEST = 100.0, 200.0
# Metres: a record's lengths are rounded to so many.
_SMALLEST = 1e-4
# Degrees that a box may be rolled about its normal and still stand upright.
_ROLL = 1.0
_SURFACES = {"walls": "wall", "doors": "door", "windows": "window", "openings": "opening"}
WORDS = {
    "washerDryer": "washing machine",
    "storage": "storage unit",
    "television": "TV",
    # Apple's name for a fireplace's whole body.
    "fireplace": "fireplace",
}
# Phrases for attributes whose words do not stand before the category.
_PHRASES = {
    ("ChairArmType", "existing"): "{} with armrests",
    ("ChairArmType", "missing"): "{} without armrests",
    ("ChairBackType", "existing"): "{} with a backrest",
    ("ChairBackType", "missing"): "{} without a backrest",
    ("ChairLegType", "star"): "{} on a star-shaped base",
    ("ChairLegType", "four"): "{} on four legs",
    ("StorageType", "cabinet"): "cabinet",
    ("StorageType", "shelf"): "shelf",
}


@dataclasses.dataclass(frozen=True)
class RoomPlanScene:
    """What an export holds; metres, z up.

    Attributes:
      boxes: walls, doors, windows, openings, objects, in this order.
      floors: corners of each floor.
      notes: what was simplified.
    """

    boxes: list[Box]
    floors: list[Float[np.ndarray, "N 3"]]
    notes: list[str]


def read_roomplan(path: Path) -> RoomPlanScene:
    """Reads an export.

    Raises:
      UserError: another kind of file, or an element with an impossible field, by its place.
    """
    whole = read_json(path)
    if not is_roomplan(whole):
        raise UserError(
            f"{path}: expected a RoomPlan export, an object with lists 'walls' and 'objects'"
        )
    found, floors, notes = [], [], []
    for room in _rooms(whole):
        for field, group in _SURFACES.items():
            for entry, where in _entries(room, field, path):
                found.append((_surface(entry, group, where, notes), where))
        for entry, where in _entries(room, "objects", path):
            found.append((_object(entry, where, notes), where))
        floors += [_floor(entry, where) for entry, where in _entries(room, "floors", path)]
    # Rooms of a structure share walls.
    boxes = distinct(found)
    order = [*_SURFACES.values(), OBJECT]
    boxes.sort(key=lambda box: order.index(box.group))
    return RoomPlanScene(boxes, floors, notes)


def is_roomplan(whole: object) -> bool:
    """Whether a decoded JSON file is such an export."""
    return isinstance(whole, dict) and (
        isinstance(whole.get("walls"), list) or isinstance(whole.get("rooms"), list)
    )


def _entries(room: dict, field: str, path: Path) -> list[tuple[object, str]]:
    """The elements of a list, each with its place for messages."""
    found = room.get(field) or []
    if not isinstance(found, list):
        raise UserError(f"{path}: {field!r} must be a list, found {type(found).__name__}")
    return [(entry, f"{path}: {field}[{number}]") for number, entry in enumerate(found)]


def _rooms(whole: dict) -> list[dict]:
    """The structure itself where it has walls, else its rooms."""
    if whole.get("walls"):
        return [whole]
    return [room for room in whole.get("rooms") or [whole] if isinstance(room, dict)]


def _surface(entry: object, group: str, where: str, notes: list[str]) -> Box:
    matrix, size = _placed(entry, where, flat=True)
    axes, (width, height, _) = _along(matrix, size, where, notes)
    if entry.get("curve"):
        notes.append(f"{where}: a curved {group} is taken as the flat box around it")
    category = entry.get("category")
    state = category.get("door") if group == "door" and isinstance(category, dict) else None
    is_open = bool(isinstance(state, dict) and state.get("isOpen"))
    attributes = ()
    if isinstance(state, dict) and "isOpen" in state:
        attributes = ("open {}" if is_open else "closed {}",)
    return Box(
        name=_name(entry, where),
        group=group,
        category=group,
        centre=matrix[:3, 3],
        axes=axes,
        size=np.array([width, height, SURFACE_DEPTH]),
        attributes=attributes,
        parent=entry.get("parentIdentifier"),
        open=is_open,
    )


def _object(entry: object, where: str, notes: list[str]) -> Box:
    matrix, size = _placed(entry, where, flat=False)
    axes, size = _along(matrix, size, where, notes)
    category = entry.get("category")
    word = next(iter(category), None) if isinstance(category, dict) else category
    if not isinstance(word, str):
        raise UserError(f"{where}: 'category' must name a category, found {category!r}")
    return Box(
        name=_name(entry, where),
        group=OBJECT,
        category=category_of(word),
        centre=matrix[:3, 3],
        axes=axes,
        size=size,
        attributes=_attributes(entry.get("attributes")),
        parent=entry.get("parentIdentifier"),
    )


def _attributes(found: object) -> tuple[str, ...]:
    if not isinstance(found, dict):
        return ()
    return tuple(
        _PHRASES.get((name, value), f"{words_of(value)} {{}}")
        for name, value in sorted(found.items())
        if isinstance(value, str) and value != "unidentified"
    )


def category_of(key: str) -> str:
    """What a category's key says: camel case is words, quotes hold a name, others are one."""
    if key in WORDS:
        return WORDS[key]
    if len(key) > 1 and key[0] == key[-1] == '"':
        return key[1:-1]
    return words_of(key) if re.fullmatch("[a-z0-9][A-Za-z0-9]*", key) else key


def words_of(name: str) -> str:
    """A name in camel case as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _floor(entry: object, where: str) -> np.ndarray:
    matrix, (width, height, _) = _placed(entry, where, flat=True)
    corners = entry.get("polygonCorners") or []
    try:
        local = np.array(corners, np.float64).reshape(-1, 3)
    except (TypeError, ValueError, OverflowError):
        local = np.full((1, 3), np.nan)
    if not (np.abs(local) <= _FARTHEST).all():
        raise UserError(f"{where}: 'polygonCorners' must be a list of [x, y, z] in metres")
    if len(local) < 3:
        local = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], np.float64)
        local *= (width / 2, height / 2, 0)
    return local @ matrix[:3, :3].T + matrix[:3, 3]


def _name(entry: dict, where: str) -> str:
    name = entry.get("identifier")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: needs a text 'identifier', found {name!r}")
    return name


def _along(
    matrix: np.ndarray, size: np.ndarray, where: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The axes of a box with this pose, and its size along them.

    A box is not rolled about its normal but in quarter turns, which swap width and height.
    """
    axes = box_axes(matrix[:3, 2], matrix[:3, 0])
    right, up, _ = axes @ matrix[:3, 1]
    roll = np.degrees(np.arctan2(right, up))
    quarters = round(roll / 90)
    if abs(roll - 90 * quarters) > _ROLL:
        notes.append(
            f"{where}: rolled by {abs(roll):.0f}° about its normal, which is taken as "
            f"{abs(90 * quarters)}°"
        )
    return axes, size[[1, 0, 2]] if quarters % 2 else size


def _placed(entry: object, where: str, flat: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pose in the z-up world and the size of an element."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, found {type(entry).__name__}")
    matrix = numbers_of(entry, "transform", (16,), where).reshape(4, 4).T
    if not is_rotation(matrix[:3, :3]):
        raise UserError(f"{where}: the first three columns of 'transform' are no rotation")
    size = numbers_of(entry, "dimensions", (3,), where)
    if size[: 2 if flat else 3].min() < _SMALLEST or size.max() > _LARGEST:
        raise UserError(
            f"{where}: 'dimensions' must be [width, height, depth] in metres, from {_SMALLEST:g} "
            f"to {_LARGEST:g}, found {size.tolist()}"
        )
    if np.abs(matrix[:3, 3]).max() > _FARTHEST:
        raise UserError(
            f"{where}: 'transform' puts it {np.abs(matrix[:3, 3]).max():g} m from the origin; "
            "expected metres"
        )
    matrix = matrix.copy()
    matrix[:3] = Y_UP_TO_Z_UP @ matrix[:3]
    return matrix, size
