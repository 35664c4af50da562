"""From a scene of any data set to its place_anchor records: what the preparations run a scene."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxvlm.data.boxes import Box
from jaxvlm.data.frames import upright
from jaxvlm.data.geometry import looked_at
from jaxvlm.data.prep.anchors import ShownScene, anchor_records
from jaxvlm.data.prep.arkit import frames_folder, read_boxes, read_frames
from jaxvlm.data.prep.drawn import draw_scene, save_views
from jaxvlm.data.prep.files import folder_name
from jaxvlm.data.prep.floor_plan import floor_plan
from jaxvlm.data.prep.job import Part, scene_rng
from jaxvlm.data.prep.planes import read_planes
from jaxvlm.data.prep.roomplan import read_roomplan
from jaxvlm.data.prep.scan import ScanFrame, choose_frames, measured, relative_path, view_rows
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """How records are made of a scene.

    Attributes:
      num_views: views a record at most.
      views: method of `choose_views`.
      frame: of poses and actions.
      instructions: of a scene at most; None for all.
      draw: folder for drawn views where a scene has no photographs; None where that is an error.
      image_size: side of drawn views in pixels.
      unseen: "keep" or "drop" things that no view shows; None drops them where there are
        photographs and keeps them where views are drawn.
      plans: folder for floor plans, or None.
      seed: of draws.
    """

    num_views: int
    views: str
    frame: str
    instructions: int | None
    draw: Path | None
    image_size: int
    unseen: str | None
    plans: Path | None
    seed: int


@dataclasses.dataclass(frozen=True)
class AnchorScenes:
    """Makes the records of scenes; `folders` says where each lies, `kind` how it is read."""

    kind: str
    folders: dict[str, Path]
    options: Options

    def __call__(self, scene: str) -> Part:
        """The records of a scene."""
        make: Callable[[str, Path, Options], Part] = _KINDS[self.kind]
        return make(scene, self.folders[scene], self.options)

    def inputs(self, scene: str) -> list[Path]:
        """What a scene's records are made from."""
        place = self.folders[scene]
        if self.kind == "roomplan":
            return [place]
        if self.kind == "planes":
            return [place / "annotations" / "planes.json", place / "cameras.json"]
        frames = frames_folder(place) or place
        names = ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics", "lowres_wide.traj")
        return [place / f"{scene}_3dod_annotation.json", *(frames / name for name in names)]


def _arkit(scene: str, folder: Path, options: Options) -> Part:
    annotation = folder / f"{scene}_3dod_annotation.json"
    frames_in = frames_folder(folder)
    if frames_in is None:
        boxes = read_boxes(annotation, None)
        hint = f"{folder} has neither {scene}_frames/lowres_wide nor lowres_wide; download them"
        return _drawn(scene, "arkit_actions", boxes, [], "z", hint, options)
    frames, lost = read_frames(frames_in, scene)
    counts = Counter()
    if lost:
        counts["frames without a pose or intrinsics, left out"] = lost
    boxes = read_boxes(annotation, np.stack([frame.pose[:3, 3] for frame in frames]))
    part = _photographed(scene, "arkit_actions", boxes, frames, options)
    part.counts += counts
    return part


def _planes(scene: str, folder: Path, options: Options) -> Part:
    found = read_planes(folder)
    return _photographed(scene, "roomplan", found.boxes, found.frames, options)


def _roomplan(scene: str, path: Path, options: Options) -> Part:
    found = read_roomplan(path)
    hint = f"{path}: a RoomPlan export has no photographs"
    part = _drawn(scene, "roomplan", found.boxes, found.floors, "y", hint, options)
    part.notes[:0] = found.notes
    return part


_KINDS = {"arkit": _arkit, "planes": _planes, "roomplan": _roomplan}


def _photographed(
    scene: str,
    task: str,
    boxes: Sequence[Box],
    frames: Sequence[ScanFrame],
    options: Options,
) -> Part:
    """Records of a scene with photographs."""
    rng = scene_rng(options.seed, scene)
    with_depth = [frame for frame in frames if frame.depth is not None]
    if len(with_depth) >= options.num_views:
        frames = with_depth
    chosen = choose_frames(frames, options.num_views, options.views, rng)
    geometry = measured(chosen)
    part = Part(views=view_rows(scene, chosen))
    blind = sum(frame.depth is None for frame in chosen)
    few = f"scenes with fewer than {options.num_views} views"
    part.counts[few] = int(len(chosen) < options.num_views)
    part.counts["views without depth, and so with an empty histogram"] = blind
    in_view = {box.name: looked_at(_points(box), geometry, chosen[0].size).any(1) for box in boxes}
    # A thing of which a corner shows counts when others are told apart from it; only one whose
    # centre shows is asked for.
    keep = options.unseen == "keep"
    shown = [box for box in boxes if keep or in_view[box.name].any()]
    asked = [box for box in shown if keep or in_view[box.name][0]]
    part.counts["objects that no chosen view looks at, left out"] = len(boxes) - len(asked)
    part.counts = +part.counts
    if not asked:
        part.counts["scenes without an object to anchor to"] = 1
        return part
    images = tuple(relative_path(frame.image) for frame in chosen)
    shown = ShownScene(scene, asked, images, geometry, chosen[0].size, beside=shown)
    part.records = anchor_records(shown, task, options.frame, options.instructions, rng)
    return part


def _points(box: Box) -> np.ndarray:
    """The centre of a box, then its corners."""
    return np.concatenate([box.centre[None], box.corners()])


def _drawn(
    scene: str,
    task: str,
    boxes: Sequence[Box],
    floors: Sequence[np.ndarray],
    up: str,
    hint: str,
    options: Options,
) -> Part:
    """Records of a scene whose views are drawn."""
    if options.draw is None:
        raise UserError(f"{hint}; pass --render to draw views from the boxes")
    if not boxes:
        return Part(counts=Counter({"scenes without an object to anchor to": 1}))
    drawn = draw_scene(boxes, floors, options.num_views, options.image_size)
    paths = save_views(drawn, options.draw / folder_name(scene))
    part = Part(counts=Counter({"scenes with drawn views": 1}))
    if drawn.unseen:
        kept = options.unseen != "drop"
        names = ", ".join(f"{b.category} {b.name}" for b in boxes if b.name in drawn.unseen)
        part.notes.append(f"{scene}: no view shows {names}; {'kept' if kept else 'left out'}")
        boxes = [b for b in boxes if kept or b.name not in drawn.unseen]
    if options.plans is not None:
        options.plans.mkdir(parents=True, exist_ok=True)
        floor_plan(boxes, drawn.cameras).save(options.plans / f"{folder_name(scene)}.png")
    images = tuple(relative_path(path) for path in paths)
    part.files = list(images)
    size = (options.image_size, options.image_size)
    shown = ShownScene(scene, boxes, images, drawn.geometry, size, up, rendered=True)
    rng = scene_rng(options.seed, scene)
    part.records = anchor_records(shown, task, options.frame, options.instructions, rng)
    positions = drawn.geometry["t"] @ upright(up)
    part.views = [
        (scene, number, image, *map(float, position.round(3)))
        for number, (image, position) in enumerate(zip(images, positions, strict=True))
    ]
    return part
