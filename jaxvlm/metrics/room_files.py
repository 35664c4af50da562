"""What was predicted of rooms, as files like RoomPlan's."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxvlm.console import say
from jaxvlm.data.boxes import middle_box, world_box
from jaxvlm.data.prep.captured_room import captured_room
from jaxvlm.data.prep.files import folder_name
from jaxvlm.data.record import Record
from jaxvlm.files import write_text


def write_rooms(folder: Path, said: Iterable[tuple[Record, Mapping]]) -> list[Path]:
    """Writes what was predicted of each scene as a file like RoomPlan's; returns the files.

    Several records may ask for one object, each in other words: the middle one of their boxes
    stands there.

    Args:
      folder: made where it is not there.
      said: records, each with its line of predictions.
    """
    scenes: dict[str, dict[tuple, list]] = {}
    cameras: dict[str, set[str]] = {}
    bare = nameless = more = 0
    for record, line in said:
        if not record.is_action:
            continue
        name = next(iter(record.object_names), "object")
        nameless += not record.object_names
        box = world_box(record, line.get("predicted_action"), name)
        bare += box is None
        if box is None:
            continue
        objects = scenes.setdefault(record.scene_id, {})
        # Without identifiers nobody knows whether two records ask for one object.
        boxes = objects.setdefault(record.object_ids[:1] or ("of its own", len(objects)), [])
        more += bool(boxes)
        boxes.append(box)
        if record.frame == "first_camera" and record.frame_to_world is None:
            cameras.setdefault(record.scene_id, set()).add(record.images[0])
    if bare:
        say(f"warning: {bare:,} answers have no box, and stand in no file", warns=True)
    if nameless:
        say(
            f"warning: {nameless:,} records have no 'object_names'; what they ask for is an "
            "'object' in the files",
            warns=True,
        )
    if more:
        say(f"{more:,} answers are about an object that another is about too; the middle one's "
            "box is written")  # fmt: skip
    apart = [scene for scene, first in cameras.items() if len(first) > 1]
    if apart:
        say(f"warning: boxes of {len(apart):,} scenes, such as {apart[0]!r}, are measured from "
            "different first cameras and do not fit together: their records have no "
            "'frame_to_world'", warns=True)  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for scene, objects in scenes.items():
        files.append(folder / f"{folder_name(scene)}.json")
        room = captured_room(map(middle_box, objects.values()), scene)
        write_text(files[-1], json.dumps(room, indent=1) + "\n")
    return files
