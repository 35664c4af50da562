"""Boxes as a file like Apple's RoomPlan's: a CapturedRoom as JSON, which `roomplan.py` reads.

Metres, y up; a transform is column-major, its columns are width axis, height axis, normal and
position of the centre. What RoomPlan measures and a box does not tell (corners, curves, its own
model) is left empty.
"""

import re
import uuid
from collections.abc import Iterable

import numpy as np

from jaxvlm.data.boxes import Box, box_axes, flattened
from jaxvlm.data.frames import Y_UP_TO_Z_UP, is_level, rounded
from jaxvlm.data.prep.roomplan import WORDS, category_of, words_of

_SURFACES = {"wall": "walls", "door": "doors", "window": "windows", "opening": "openings"}
_NAMES = {word: name for name, word in WORDS.items()}
_VERSION = 2


def captured_room(boxes: Iterable[Box], scene: str) -> dict:
    """The object of JSON.

    Args:
      boxes: things of a scene, z up; those whose category is a wall, door, window or opening are
        surfaces, the others objects.
      scene: identifiers are made from its name.
    """
    room: dict = {field: [] for field in (*_SURFACES.values(), "objects", "floors", "sections")}
    for number, box in enumerate(boxes):
        shared = {
            "identifier": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{scene}/{number}")).upper(),
            "parentIdentifier": None,
            "confidence": {"high": {}},
            "story": 0,
            "transform": _transform(box),
        }
        if box.category in _SURFACES:
            entry = shared | {
                "category": {box.category: {"isOpen": False} if box.category == "door" else {}},
                "dimensions": [*rounded(_upright(box)[1][:2], 4), 0.0],
                "polygonCorners": [],
                "completedEdges": [],
                "curve": None,
            }
            room[_SURFACES[box.category]].append(entry)
        else:
            entry = shared | {
                "category": {_key(box.category): {}},
                "dimensions": rounded(_upright(box)[1], 4),
                "attributes": {},
            }
            room["objects"].append(entry)
    return room | {
        "story": 0,
        "version": _VERSION,
        "referenceOriginTransform": np.eye(4).ravel().tolist(),
    }


def _upright(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Axes and size of a box with a horizontal normal, as RoomPlan's are."""
    if not is_level(box.axes[2]):
        # A model may say a front that is tilted.
        return box_axes(flattened(box.axes[2])), box.size
    # Its first axis becomes the normal, its normal points up or down.
    axes, size = box.axes[[1, 2, 0]], box.size[[1, 2, 0]]
    if axes[1, 2] < 0:
        axes = axes * np.array([[-1], [-1], [1]])
    return axes, size


def _transform(box: Box) -> list[float]:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = _upright(box)[0].T, box.centre
    matrix[:3] = Y_UP_TO_Z_UP.T @ matrix[:3]
    return rounded(matrix.T.ravel(), 6)


def _key(category: str) -> str:
    """What the reader reads as a category: RoomPlan's own name, words in camel case, or itself."""
    if category in _NAMES:
        return _NAMES[category]
    camel = _camel(category)
    if words_of(camel) == category:
        return camel
    return category if category_of(category) == category else f'"{category}"'


def _camel(words: str) -> str:
    """Words as a name in camel case."""
    first, *rest = re.findall(r"[A-Za-z0-9]+", words) or [""]
    return first[:1].lower() + first[1:] + "".join(word.capitalize() for word in rest)
