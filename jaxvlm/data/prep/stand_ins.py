"""Drawn stand-ins for records of actions whose photographs are not there.

The boxes of a scene's actions are drawn; questions and actions stay as they are.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from jaxvlm.data.boxes import Box, record_box
from jaxvlm.data.frames import Frame, upright
from jaxvlm.data.images import find_image
from jaxvlm.data.prep.drawn import draw_scene, save_views
from jaxvlm.data.prep.files import folder_name
from jaxvlm.data.prep.job import Part
from jaxvlm.data.prep.referring import VIEWPOINT
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
        """The records of a scene, in their order; those with photographs as they are."""
        file, part = RecordFile(self.path), Part()
        roots = (str(self.path.parent), *self.image_roots)
        boxes: dict[int, Box] = {}
        kept: set[int] = set()
        for index in self.members[scene]:
            record = file[index]
            if any(find_image(image, roots) for image in record.images):
                kept.add(index)
                part.counts["records with photographs, kept"] += 1
            elif VIEWPOINT in record.question:
                part.counts["records that speak of the first camera, left out"] += 1
            elif (box := record_box(record)) is None:
                part.counts["records without a box, left out"] += 1
            else:
                boxes[index] = dataclasses.replace(box, category=_category(record))
        views = self._draw(scene, list(boxes.values())) if boxes else None
        for index in self.members[scene]:
            if index in boxes:
                part.records.append(self._with_views(file[index], *views))
            elif index in kept:
                part.records.append(file[index])
        part.files = list(views[0]) if views else []
        part.counts["scenes with drawn views"] = int(bool(boxes))
        part.counts = +part.counts
        return part

    def _draw(self, scene: str, boxes: list[Box]) -> tuple[tuple[str, ...], dict]:
        """Paths and geometry of the views; several records may ask for the same box."""
        distinct = {(box.category, *box.centre, *box.size): box for box in boxes}
        drawn = draw_scene(list(distinct.values()), [], self.num_views, self.image_size)
        paths = save_views(drawn, self.draw / folder_name(scene))
        return tuple(relative_path(path) for path in paths), drawn.geometry

    def inputs(self, scene: str) -> list[Path]:
        """What a scene's records are made from."""
        return [self.path]

    def _with_views(self, record: Record, images: tuple[str, ...], geometry: dict) -> Record:
        """A record with other views; its coordinates stay, and are a world's now."""
        turn = Frame(upright(record.up).T, np.zeros(3))
        rotations = turn.rotations(geometry["R"].reshape(-1, 3, 3).astype(np.float64))
        moved = {
            **geometry,
            "R": rotations.reshape(-1, 9).astype(np.float32),
            "t": turn.points(geometry["t"].astype(np.float64)).astype(np.float32),
        }
        return dataclasses.replace(
            record,
            images=images,
            geometry=moved,
            image_size=(self.image_size, self.image_size),
            frame="world",
            rendered=True,
        )


def _category(record: Record) -> str:
    quoted = _QUOTED.search(record.question)
    return (*record.object_names, quoted.group(1) if quoted else "thing")[0]
