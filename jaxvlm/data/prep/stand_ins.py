"""Drawn stand-ins for records of actions whose photographs are not there.

The boxes of a scene's actions are drawn; questions and actions stay as they are.
"""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import numpy as np

from jaxvlm.data.boxes import OBJECT, Box, box_axes
from jaxvlm.data.frames import Frame, upright
from jaxvlm.data.prep.drawn import draw_scene, save_views
from jaxvlm.data.prep.job import Part
from jaxvlm.data.prep.scan import relative_path
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile

_QUOTED = re.compile(r"category '([^']+)'")


@dataclasses.dataclass(frozen=True)
class StandIns:
    """Gives the records of a scene drawn views.

    Attributes:
      path: the record file.
      members: indices of each scene's records.
      draw: folder for the views.
      num_views: views a record.
      image_size: side of the views in pixels.
      image_roots: folders of relative image paths.
    """

    path: Path
    members: dict[str, list[int]]
    draw: Path
    num_views: int
    image_size: int
    image_roots: tuple[str, ...]

    def __call__(self, scene: str) -> Part:
        """The records of a scene, those with photographs as they are."""
        file = RecordFile(self.path)
        records = [file[index] for index in self.members[scene]]
        roots = (str(self.path.parent), *self.image_roots)
        absent = [r for r in records if not any(_exists(i, roots) for i in r.images)]
        part = Part(counts=Counter({"records with photographs, kept": len(records) - len(absent)}))
        boxes = [box for number, r in enumerate(absent) if (box := _box(r, number)) is not None]
        part.counts["records without a box, left out"] = len(absent) - len(boxes)
        part.records = [record for record in records if record not in absent]
        if boxes:
            drawn = draw_scene(_distinct(boxes), [], self.num_views, self.image_size)
            paths = save_views(drawn, self.draw / scene)
            images = tuple(relative_path(path) for path in paths)
            part.records += [
                self._with_views(record, images, drawn.geometry)
                for number, record in enumerate(absent)
                if _box(record, number) is not None
            ]
            part.counts["scenes with drawn views"] = 1
        part.counts = +part.counts
        return part

    def inputs(self, scene: str) -> list[Path]:
        """What a scene's records are made from."""
        return [self.path]

    def _with_views(self, record: Record, images: tuple[str, ...], geometry: dict) -> Record:
        """A record with other views; poses in the record's own world."""
        turn = Frame(upright(record.up).T, np.zeros(3))
        rotations = turn.rotations(geometry["R"].reshape(-1, 3, 3).astype(np.float64))
        moved = {
            **geometry,
            "R": rotations.reshape(-1, 9).astype(np.float32),
            "t": turn.points(geometry["t"].astype(np.float64)).astype(np.float32),
        }
        size = (self.image_size, self.image_size)
        return dataclasses.replace(
            record, images=images, geometry=moved, image_size=size, rendered=True
        )


def _exists(image: str, roots: tuple[str, ...]) -> bool:
    return any(Path(root, image).is_file() for root in roots)


def _box(record: Record, number: int) -> Box | None:
    """The box of a record's action, z up."""
    action = record.action or {}
    if not all(action.get(name) for name in ("center", "normal", "extent")):
        return None
    turn = upright(record.up)
    quoted = _QUOTED.search(record.question)
    category = (*record.object_names, quoted.group(1) if quoted else "thing")[0]
    axes = box_axes(turn @ np.array(action["normal"], np.float64))
    size = np.array(action["extent"], np.float64)
    if size.min() <= 0:
        return None
    centre = turn @ np.array(action["center"], np.float64)
    return Box(str(number), OBJECT, category, centre, axes, size)


def _distinct(boxes: list[Box]) -> list[Box]:
    """Several records may ask for the same box."""
    return list({(b.category, *b.centre, *b.size): b for b in boxes}.values())
