"""Rooms on disk: images and records, written in parallel, continued where a run stopped."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxvlm.errors import UserError
from jaxvlm.render.raycast import render
from jaxvlm.rooms.cameras import room_cameras
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.mesh import room_mesh
from jaxvlm.rooms.records import room_records

VERSION = 4
"""Raised whenever the same parameters would make different rooms, images or questions."""
OWN = ("images", "depth", "parts", "meta.json", "contact_sheet.png", "kinds.png")
SPLITS = ("train", "val", "test")
# Between a part's questions and its actions: a form feed, which never stands in a line of JSON.
_BETWEEN = "\f"


@dataclass(frozen=True)
class Parameters:
    """What a data set is made from; sizes in pixels."""

    train_rooms: int = 3000
    val_rooms: int = 200
    test_rooms: int = 400
    views: int = 3
    image_size: int = 112
    questions_per_room: int = 12
    seed: int = 0
    depth: bool = False

    def __post_init__(self) -> None:
        least = {
            "train_rooms": 1,
            "val_rooms": 1,
            "test_rooms": 1,
            "views": 1,
            "image_size": 16,
            "questions_per_room": 1,
            "seed": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} must be at least {smallest}, got {value}")

    def rooms(self, split: str) -> int:
        """Rooms in a split."""
        return getattr(self, f"{split}_rooms")


class RoomsFolder:
    """An output folder: what it was made from, what is done, what is left."""

    def __init__(self, path: Path, parameters: Parameters):
        self.path = path
        self.parameters = parameters
        self.identity = {"version": VERSION, "parameters": asdict(parameters)}

    def prepare(self, overwrite: bool) -> bool:
        """Claims the folder for these parameters; false where everything stands already."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            if overwrite:
                self._clear()
            meta = self._meta()
            if meta is None:
                self._write_meta(complete=False)
                meta = self._meta() or {}
        except OSError as error:
            raise UserError(f"cannot write to --output {self.path}: {error.strerror}") from error
        if {key: meta.get(key) for key in self.identity} != self.identity:
            raise UserError(
                f"{self.path} holds rooms made with other settings ({self._difference(meta)}): "
                "choose another --output, or pass --overwrite to replace them"
            )
        return not (meta.get("complete") and self._sizes() == meta.get("bytes"))

    def missing(self) -> list[tuple[str, int]]:
        """Rooms without a finished part, as (split, index)."""
        return [
            (split, index)
            for split in SPLITS
            for index in range(self.parameters.rooms(split))
            if not self.part(split, index).exists()
        ]

    def write_rooms(self, rooms: list[tuple[str, int]], workers: int) -> Iterator[tuple[str, int]]:
        """Makes each room's files; yields (split, index) as they are finished."""
        work = partial(_write_room, self.path, self.parameters)
        if workers == 1:
            yield from map(work, rooms)
            return
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            yield from pool.imap_unordered(work, rooms, chunksize=4)

    def finish(self) -> None:
        """Joins the parts into record files, in the order of the rooms."""
        for split in SPLITS:
            parts = [
                self.part(split, index).read_text().partition(_BETWEEN)
                for index in range(self.parameters.rooms(split))
            ]
            _write_text(self.path / f"{split}.jsonl", "".join(part[0] for part in parts))
            _write_text(self.path / f"actions_{split}.jsonl", "".join(part[2] for part in parts))
        self._write_meta(complete=True)
        shutil.rmtree(self.path / "parts")

    def record_files(self) -> list[Path]:
        """The six record files."""
        names = [f"{kind}{split}.jsonl" for split in SPLITS for kind in ("", "actions_")]
        return [self.path / name for name in names]

    def part(self, split: str, index: int) -> Path:
        """The records of one room, kept until all rooms are done."""
        return _part(self.path, split, index)

    def _meta(self) -> dict[str, Any] | None:
        path = self.path / "meta.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        # Weights have a file of this name, too.
        if not isinstance(found, dict) or not isinstance(found.get("parameters"), dict):
            raise UserError(
                f"{path} is not that of a folder of rooms: choose another --output, or remove the "
                "folder yourself"
            )
        return found

    def _write_meta(self, complete: bool) -> None:
        meta = self.identity | {"complete": complete, "bytes": self._sizes()}
        _write_text(self.path / "meta.json", json.dumps(meta, indent=2) + "\n")

    def _difference(self, meta: dict[str, Any]) -> str:
        if meta.get("version") != VERSION:
            return f"generator version {meta.get('version')}, now {VERSION}"
        there, here = meta.get("parameters", {}), self.identity["parameters"]
        changed = [name for name in here if there.get(name) != here[name]]
        return ", ".join(f"{name} {there.get(name)}, now {here[name]}" for name in changed)

    def _refuse_foreign(self) -> None:
        """Nothing that this program did not write is overwritten or removed."""
        if (self.path / "meta.json").exists():
            self._meta()
            return
        ours = [self.path / name for name in OWN] + self.record_files()
        found = next((path for path in ours if path.exists()), None)
        if found is not None:
            raise UserError(
                f"{found} exists, but {self.path} is no folder of rooms (it has no meta.json): "
                "choose another --output"
            )

    def _sizes(self) -> dict[str, int]:
        """Bytes of each record file; nothing where one is missing, or the images are."""
        files = self.record_files()
        if not all(path.is_file() for path in files) or not all(map(self._drawn, SPLITS)):
            return {}
        return {path.name: path.stat().st_size for path in files}

    def _drawn(self, split: str) -> bool:
        """Whether every room of a split has a folder of images."""
        folder = self.path / "images" / split
        return folder.is_dir() and len(os.listdir(folder)) >= self.parameters.rooms(split)

    def _clear(self) -> None:
        for path in [self.path / name for name in OWN] + self.record_files():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _write_room(folder: Path, parameters: Parameters, room_id: tuple[str, int]) -> tuple[str, int]:
    split, index = room_id
    room = generate_room(parameters.seed, split, index)
    mesh = room_mesh(room)
    cameras = room_cameras(mesh, parameters.views)
    views = [render(mesh, camera, parameters.image_size) for camera in cameras]
    names = [f"images/{split}/{room.key.scene_id}/{view}.jpg" for view in range(len(views))]
    (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
    for name, view in zip(names, views, strict=True):
        Image.fromarray(view.rgb).save(folder / name, quality=95, subsampling=0)
    if parameters.depth:
        for name, view in zip(names, views, strict=True):
            path = (folder / name.replace("images", "depth", 1)).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(view.depth * 1000).astype(np.uint16)).save(path)
    questions, actions = room_records(room, cameras, views, names, parameters.questions_per_room)
    # Written last: a part that exists vouches for the room's images.
    path = _part(folder, split, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_text(path, _lines(questions) + _BETWEEN + _lines(actions))
    return room_id


def _part(folder: Path, split: str, index: int) -> Path:
    return folder / "parts" / split / f"{index:06d}.txt"


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    os.replace(draft, path)
