"""How much of a room do N chosen views see? Coverage against uniform and random choice.

    python scripts/bench/view_choice.py --rooms 40 --views 8 [--output FILE.json]

Walks through procedural rooms as somebody who scans them would, chooses views of the walk by each
method, and prints the share of the room's surface points that the chosen views see.
"""

import argparse
import functools

import numpy as np
import result
from command_line import count, new_parser

from jaxvlm import entry
from jaxvlm.console import print_table, progress
from jaxvlm.data.prep.view_choice import METHODS, choose_views
from jaxvlm.render.camera import Camera, look_at
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.mesh import RoomMesh, room_mesh
from jaxvlm.rooms.scene import Room

FRAMES, POINTS = 300, 3000
FOCAL, WIDTH, HEIGHT = 0.86, 640, 480


def main(flags: argparse.Namespace) -> None:
    shares = {method: [] for method in METHODS}
    with progress("rooms", flags.rooms) as advance:
        for index in range(flags.rooms):
            for method in METHODS:
                shares[method].append(share(flags.seed, index, flags.views, method))
            advance()
    rows = [
        (method, f"{np.mean(v):.1%}", f"{np.std(v) / len(v) ** 0.5:.1%}", f"{np.min(v):.1%}")
        for method, v in shares.items()
    ]
    title = f"{flags.views} of {FRAMES} views, {flags.rooms} rooms: surface points seen"
    print_table(title, ("method", "mean", "standard error", "worst room"), rows)
    result.write(
        flags.output,
        rooms=flags.rooms,
        views=flags.views,
        frames=FRAMES,
        seed=flags.seed,
        of="the surface points that the whole walk sees",
        mean={m: float(np.mean(v)) for m, v in shares.items()},
        worst={m: float(np.min(v)) for m, v in shares.items()},
    )


def share(seed: int, index: int, views: int, method: str) -> float:
    """Share of what a walk through a room sees that the chosen views of it see."""
    rng = np.random.default_rng((seed, index))
    cameras, seen = _walked(seed, index)
    poses = np.stack([camera.cam_to_world for camera in cameras])
    fields = np.tile([WIDTH / HEIGHT / 2 / FOCAL, 0.5 / FOCAL], (FRAMES, 1))
    chosen = choose_views(poses[:, :3, :3], poses[:, :3, 3], fields, views, method, rng)
    return float(seen[chosen].any(0).sum() / max(seen.any(0).sum(), 1))


@functools.lru_cache(maxsize=8)
def _walked(seed: int, index: int) -> tuple[list[Camera], np.ndarray]:
    room = generate_room(seed, "val", index)
    rng = np.random.default_rng((seed, index))
    cameras = walk(room, rng)
    return cameras, seen_points(room_mesh(room), cameras, rng)


def walk(room: Room, rng: np.random.Generator) -> list[Camera]:
    """A walk from spot to spot, looking around; it lingers, as people do."""
    spots = [spot for spot in _spots(room, rng, 200) if room.plan.contains(spot, 0.4)][:8]
    path = np.concatenate([spots, spots[:1]])
    pace = np.cumsum(rng.exponential(1, FRAMES))
    along = (pace - pace[0]) / (pace[-1] - pace[0]) * (len(path) - 1)
    place = np.stack([np.interp(along, np.arange(len(path)), path[:, i]) for i in (0, 1)], 1)
    yaw = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0.03, 0.08, FRAMES))
    pitch = np.radians(-15 + 12 * np.sin(np.cumsum(rng.normal(0.05, 0.05, FRAMES))))
    height = 1.5 + 0.1 * np.sin(along)
    ahead = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    eyes = np.column_stack([place, height])
    return [look_at(eye, eye + way, FOCAL) for eye, way in zip(eyes, ahead, strict=True)]


def _spots(room: Room, rng: np.random.Generator, count: int) -> np.ndarray:
    half = np.array([room.plan.width, room.plan.depth]) / 2
    return rng.uniform(-half, half, (count, 2))


def seen_points(mesh: RoomMesh, cameras: list[Camera], rng: np.random.Generator) -> np.ndarray:
    """bool[V, P]: which random points of the room's surfaces each camera sees."""
    points, normals = surface_points(mesh, rng)
    seen = []
    for camera in cameras:
        eye = camera.cam_to_world[:3, 3]
        local = (points - eye) @ camera.cam_to_world[:3, :3]
        depth = np.maximum(local[:, 2:], 1e-6)
        spot = np.abs(local[:, :2] / depth) * FOCAL
        inside = (local[:, 2] > 0.1) & (spot < (WIDTH / HEIGHT / 2, 0.5)).all(-1)
        inside &= ((eye - points) * normals).sum(-1) > 0
        index = np.flatnonzero(inside)
        origins = np.ascontiguousarray(np.broadcast_to(eye, (len(index), 3)), np.float32)
        directions = (points[index] - eye).astype(np.float32)
        hits = mesh.embree.run(origins, directions, output=1)
        clear = (hits["primID"] < 0) | (hits["tfar"] > 0.99)
        inside[index] = clear
        seen.append(inside)
    return np.stack(seen)


def surface_points(mesh: RoomMesh, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over all faces, and the normals there."""
    a, b, c = mesh.corners.swapaxes(0, 1).astype(np.float64)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
    face = rng.choice(len(area), POINTS, p=area / area.sum())
    u, v = rng.random((2, POINTS, 1))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    points = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points, mesh.normals[face, 0].astype(np.float64)


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--rooms", type=count, default=40, help="walks through them")
    flags.add_argument("--views", type=count, default=8, help="of each room")
    flags.add_argument("--seed", type=int, default=0, help="of the rooms")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
