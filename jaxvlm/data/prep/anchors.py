"""Records of place_anchor actions: boxes, phrases for them, and the views that they are seen in."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.data.boxes import Box, place_anchor
from jaxvlm.data.frames import FRAMES, Frame, first_camera_frame, rounded, upright
from jaxvlm.data.prep.referring import Phrase, phrases
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError

CATEGORY = (
    "In scene {scene}, find an object belonging to the category '{category}' and place a virtual "
    "anchor at the center of that object."
)
OTHER = "In scene {scene}, place a virtual anchor at the center of {thing}."


@dataclasses.dataclass(frozen=True)
class ShownScene:
    """A scene with the views that its records show. Boxes and poses are in one z-up world.

    Attributes:
      scene_id: its name.
      boxes: what can be anchored to.
      images: paths of the views.
      geometry: `geom_token` of the views in that world.
      image_size: (width, height) in pixels.
      up: vertical axis of the data set's own world; "y" where that was turned to z.
      rendered: the views were drawn from the boxes.
      beside: boxes that are in view, from which others must be told apart; None for `boxes`.
    """

    scene_id: str
    boxes: Sequence[Box]
    images: tuple[str, ...]
    geometry: dict[str, Float[np.ndarray, "V N"]]
    image_size: tuple[int, int]
    up: str = "z"
    rendered: bool = False
    beside: Sequence[Box] | None = None


def anchor_records(
    scene: ShownScene, task: str, frame: str, most: int | None, rng: np.random.Generator
) -> list[Record]:
    """Records of a scene, at least one for every box unless `most` is less.

    Args:
      scene: boxes and views.
      task: the records' task.
      frame: of poses and actions, see `jaxvlm/data/frames.py`.
      most: instructions of the scene at most, drawn so that boxes and kinds are spread; None for
        all.
      rng: for the draw.
    """
    if frame not in FRAMES:
        raise UserError(f"--frame {frame}: expected one of {', '.join(FRAMES)}")
    rotation = scene.geometry["R"].reshape(-1, 3, 3).astype(np.float64)
    translation = scene.geometry["t"].astype(np.float64)
    # From the z-up world, in which everything is here, to the record's frame.
    if frame == "world":
        target = Frame(upright(scene.up).T, np.zeros(3))
    else:
        target = first_camera_frame(rotation[0], translation[0])
    geometry = {
        **scene.geometry,
        "R": np.float32(rounded(target.rotations(rotation).reshape(-1, 9), 6)),
        "t": np.float32(rounded(target.points(translation), 5)),
    }
    to_world = np.eye(4)
    to_world[:3, :3] = upright(scene.up).T
    shared = {
        "images": scene.images,
        "geometry": geometry,
        "image_size": scene.image_size,
        "up": scene.up if frame == "world" else "z",
        "frame": frame,
        # Of a world that was turned upright, back to the one that was measured.
        "frame_to_world": None if frame == "world" else to_world @ target.to_world(),
        "rendered": scene.rendered,
        "task": task,
        "scene_id": scene.scene_id,
    }
    said = phrases(scene.boxes if scene.beside is None else scene.beside, translation[0])
    pairs = [(box, phrase) for box in scene.boxes for phrase in said[box.name]]
    if most is not None:
        pairs = _spread(pairs, most, rng)
    return [
        Record(
            question=_instruction(scene.scene_id, box, phrase),
            action=place_anchor(box, scene.scene_id, target),
            kind=box.group if phrase.kind == "category" else f"{box.group} by {phrase.kind}",
            question_id=f"{scene.scene_id}-{number}",
            object_ids=(box.name, *phrase.others),
            object_names=(box.category,),
            **shared,
        )
        for number, (box, phrase) in enumerate(pairs)
    ]


def _instruction(scene: str, box: Box, phrase: Phrase) -> str:
    if phrase.kind == "category":
        return CATEGORY.format(scene=scene, category=box.category)
    return OTHER.format(scene=scene, thing=phrase.text)


def _spread(
    pairs: list[tuple[Box, Phrase]], most: int, rng: np.random.Generator
) -> list[tuple[Box, Phrase]]:
    """Some of the pairs in their order: boxes in turn, each time a kind that was drawn least."""
    left: dict[str, list[int]] = {}
    for index, (box, _) in enumerate(pairs):
        left.setdefault(box.name, []).append(index)
    kinds: dict[str, int] = {}
    chosen: list[int] = []
    while left and len(chosen) < most:
        for name in rng.permutation(sorted(left)).tolist():
            if len(chosen) == most:
                break
            index = min(left[name], key=lambda i: (kinds.get(pairs[i][1].kind, 0), i))
            left[name].remove(index)
            if not left[name]:
                del left[name]
            chosen.append(index)
            kinds[pairs[index][1].kind] = kinds.get(pairs[index][1].kind, 0) + 1
    return [pairs[index] for index in sorted(chosen)]
