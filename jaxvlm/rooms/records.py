"""Rooms as training records: the fields that jaxvlm reads, one room at a time."""

from typing import Any

import numpy as np

from jaxvlm.data.geometry import depth_histogram
from jaxvlm.render.camera import Camera
from jaxvlm.render.raycast import Rendering
from jaxvlm.rooms.questions import ask
from jaxvlm.rooms.scene import Opening, Room, RoomObject

SURFACE_DEPTH = 0.1
"""Metres; doors and windows are as thick, for an anchor is a box."""
LEAST_PIXELS, AT_SIZE = 12, 112
"""An object is asked about if it fills this many pixels of an image this large in all."""
VIEWS_ASKED_ABOUT = 3
ACTIONS_PER_ROOM = 12


def room_records(
    room: Room,
    cameras: list[Camera],
    views: list[Rendering],
    images: list[str],
    questions_per_room: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Question records and action records of a room whose views lie at the paths `images`."""
    rng = room.key.rng("questions")
    height, width = views[0].depth.shape
    visible = visible_objects(room, views[:VIEWS_ASKED_ABOUT])
    shared = {
        "images": images,
        "geom_token": geometry(cameras, views),
        "image_size": [width, height],
        "up": "z",
        "frame": "world",
        "task": "rooms",
        "scene_id": room.key.scene_id,
    }
    questions = []
    for number, question in enumerate(ask(room, visible, questions_per_room, rng)):
        record = shared | {
            "question_id": f"{room.key.scene_id}-{number}",
            "question": question.question,
            "answer": question.answer,
            "kind": question.kind,
            "object_ids": list(question.object_ids),
            "object_names": list(question.object_names),
        }
        if question.situation is not None:
            record["situation"] = question.situation
        questions.append(record)
    actions = [
        shared | action | {"question_id": f"{room.key.scene_id}-action-{number}"}
        for number, action in enumerate(_actions(room, visible, rng))
    ]
    return questions, actions


def visible_objects(room: Room, views: list[Rendering]) -> np.ndarray:
    """bool[N]: which objects fill enough pixels in all `views` together."""
    index = np.concatenate([view.object_index.ravel() for view in views])
    pixels = np.bincount(index[index >= 0], minlength=len(room.objects))
    share = LEAST_PIXELS / AT_SIZE**2
    return pixels >= max(1.0, share * views[0].depth.size)


def geometry(cameras: list[Camera], views: list[Rendering]) -> dict[str, list]:
    """The `geom_token` field: rotations, positions, intrinsics and depth histograms."""
    height, width = views[0].depth.shape
    poses = np.stack([camera.cam_to_world for camera in cameras])
    intrinsics = np.stack([camera.intrinsics(width, height) for camera in cameras])
    return {
        "R": poses[:, :3, :3].reshape(-1, 9).round(6).tolist(),
        "t": poses[:, :3, 3].round(6).tolist(),
        "K": intrinsics.reshape(-1, 9).round(6).tolist(),
        "depth_hist": [depth_histogram(view.depth).round(6).tolist() for view in views],
    }


def _actions(room: Room, visible: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Anchors at visible objects that one name singles out, and at the door and window."""
    names = [thing.name for thing in room.objects]
    kinds = [thing.kind for thing in room.objects]
    targets: list[tuple[str, dict[str, Any], list[int]]] = []
    for i, thing in enumerate(room.objects):
        if visible[i] and names.count(thing.name) == 1:
            short = kinds.count(thing.kind) == 1 and rng.random() < 0.5
            targets.append((thing.kind if short else thing.name, _object_anchor(thing), [i]))
    for kind in ("door", "window"):
        openings = room.opening(kind)
        if len(openings) == 1:
            targets.append((kind, _opening_anchor(openings[0]), []))
    actions = []
    for choice in rng.permutation(len(targets))[:ACTIONS_PER_ROOM]:
        name, anchor, ids = targets[choice]
        scene = room.key.scene_id
        actions.append(
            {
                "instruction": f"In scene {scene}, place a virtual anchor at the center of "
                f"the {name}.",
                "action_json": {"action": "place_anchor", "scene": scene} | anchor,
                "object_ids": ids,
                "object_names": [room.objects[i].kind for i in ids] or [name],
            }
        )
    return actions


def _object_anchor(thing: RoomObject) -> dict[str, list[float]]:
    width, depth, height = thing.size
    return {
        "center": np.round(thing.centre, 4).tolist(),
        "normal": np.round([*thing.front, 0.0], 4).tolist(),
        "extent": np.round([width, height, depth], 4).tolist(),
    }


def _opening_anchor(opening: Opening) -> dict[str, list[float]]:
    return {
        "center": np.round(opening.centre, 4).tolist(),
        "normal": np.round([*opening.wall.inward, 0.0], 4).tolist(),
        "extent": [*np.round([opening.width, opening.top - opening.bottom], 4), SURFACE_DEPTH],
    }
