"""Where somebody in the room stands or sits, and which way that person looks."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from jaxvlm.rooms.furniture import SITTABLE
from jaxvlm.rooms.scene import Room

TOO_CLOSE = 0.8


@dataclass(frozen=True)
class Standpoint:
    """A situation in words, its position [2] in metres and unit facing [2].

    `excluded` are objects the situation names, and what they carry; `at_wall` is true where
    nothing can lie behind, `names_ahead` where the words say what lies straight ahead.
    """

    situation: str
    position: np.ndarray
    facing: np.ndarray
    excluded: frozenset[int]
    at_wall: bool = False
    names_ahead: bool = False

    def bearing(self, point: np.ndarray) -> tuple[float, float]:
        """Degrees from straight ahead to `point` [2], left positive, and metres to the left."""
        offset = point - self.position
        ahead = float(self.facing @ offset)
        left = float(self.facing[0] * offset[1] - self.facing[1] * offset[0])
        return float(np.degrees(np.arctan2(left, ahead))), left


def standpoints(room: Room, visible: np.ndarray) -> list[Standpoint]:
    """All standpoints that words single out: the door, a seat, beside one thing facing another."""
    kinds = Counter(thing.kind for thing in room.objects)
    unique = [i for i, thing in enumerate(room.objects) if kinds[thing.kind] == 1 and visible[i]]
    places = [*_at_the_door(room)]
    for i in unique:
        if room.objects[i].kind in SITTABLE:
            places.append(_sitting(room, i))
    standing = [i for i in unique if room.objects[i].support < 0]
    for i in standing:
        for j in standing:
            place = _beside(room, i, j)
            if i != j and place is not None:
                places.append(place)
    return places


def _at_the_door(room: Room) -> list[Standpoint]:
    doors, windows = room.opening("door"), room.opening("window")
    if len(doors) != 1:
        return []
    door = doors[0]
    position = door.centre[:2] + 0.3 * door.wall.inward
    words = "I am standing at the door with my back to it."
    places = [Standpoint(words, position, door.wall.inward, frozenset(), at_wall=True)]
    if len(windows) == 1:
        towards = windows[0].centre[:2] - position
        facing = towards / np.linalg.norm(towards)
        words = "I am standing at the door facing the window."
        places.append(Standpoint(words, position, facing, frozenset(), at_wall=True))
    return places


def _sitting(room: Room, seat: int) -> Standpoint:
    thing = room.objects[seat]
    words = f"I am sitting on the {thing.kind} with my back to its backrest."
    if thing.kind == "bed":
        words = "I am sitting on the bed with my back to the headboard."
    at_wall = thing.kind != "chair"
    return Standpoint(words, thing.centre[:2], thing.front, _with_carried(room, seat), at_wall)


def _beside(room: Room, here: int, there: int) -> Standpoint | None:
    a, b = room.objects[here], room.objects[there]
    towards = b.centre[:2] - a.centre[:2]
    distance = float(np.linalg.norm(towards))
    if distance < TOO_CLOSE:
        return None
    words = f"I am standing by the {a.kind} facing the {b.kind}."
    excluded = _with_carried(room, here) | _with_carried(room, there)
    return Standpoint(words, a.centre[:2], towards / distance, excluded, names_ahead=True)


def _with_carried(room: Room, index: int) -> frozenset[int]:
    return frozenset(
        i for i, thing in enumerate(room.objects) if i == index or thing.support == index
    )
