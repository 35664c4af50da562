"""Contact sheets: what was made, for people to look at."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxvlm.render.camera import look_at
from jaxvlm.render.raycast import render
from jaxvlm.rooms.cameras import room_cameras
from jaxvlm.rooms.furniture import FURNITURE
from jaxvlm.rooms.labels import COLOURS, KINDS
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.mesh import room_mesh
from jaxvlm.rooms.scene import Plan, Room, RoomObject, make_key

SHEET_ROOMS, ROOMS_A_ROW = 12, 3
VIEW_SIZE, KIND_SIZE = 256, 160
KINDS_A_ROW = 6
BORDER = 6


def save_room_sheet(path: Path, seed: int, split: str, rooms: int = SHEET_ROOMS) -> None:
    """The first rooms of a split, each from above and from inside."""
    cells = []
    for index in range(rooms):
        mesh = room_mesh(generate_room(seed, split, index))
        views = [
            render(mesh, camera, VIEW_SIZE, supersample=2, shadows=True).rgb
            for camera in room_cameras(mesh, 2)
        ]
        cells.append(np.concatenate(views, axis=1))
    Image.fromarray(_grid(cells, ROOMS_A_ROW)).save(path)


def save_kind_sheet(path: Path) -> None:
    """Every kind by itself, in the order of `KINDS`."""
    cells = []
    for index, kind in enumerate(KINDS):
        room = _showroom(kind, list(COLOURS)[index % len(COLOURS)])
        thing = room.objects[0]
        reach = float(np.linalg.norm(thing.size))
        target = thing.centre
        camera = look_at(target + reach * np.array([0.75, 1.35, 0.75]), target, 1.45)
        cells.append(render(room_mesh(room), camera, KIND_SIZE, supersample=2, shadows=True).rgb)
    Image.fromarray(_grid(cells, KINDS_A_ROW)).save(path)


def _showroom(kind: str, colour: str) -> Room:
    width, depth, height = (sum(span) / 2 for span in FURNITURE[kind].size)
    rgb = np.array(COLOURS[colour])
    centre = np.array([0, 0, height / 2])
    thing = RoomObject(kind, colour, rgb, centre, (width, depth, height), 0.0)
    key = make_key(0, "train", 0)
    grey = np.array([0.72, 0.74, 0.74])
    return Room(key, Plan(14, 14, 6, None), (), (thing,), grey, grey, "plain", grey)


def _grid(cells: list[np.ndarray], columns: int) -> np.ndarray:
    height, width, _ = cells[0].shape
    rows = -(-len(cells) // columns)
    shape = (rows * (height + BORDER) + BORDER, columns * (width + BORDER) + BORDER, 3)
    grid = np.full(shape, 255, np.uint8)
    for i, cell in enumerate(cells):
        y = BORDER + i // columns * (height + BORDER)
        x = BORDER + i % columns * (width + BORDER)
        grid[y : y + height, x : x + width] = cell
    return grid
