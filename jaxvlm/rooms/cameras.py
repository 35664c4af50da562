"""Where a room is looked at from: one bird's-eye view, then views from inside."""

import numpy as np

from jaxvlm.render.camera import Camera, look_at
from jaxvlm.rooms.mesh import RoomMesh
from jaxvlm.rooms.scene import Room, gap

CANDIDATES = 14
PROBE = 20
EYE_HEIGHT = (1.4, 1.7)


def room_cameras(mesh: RoomMesh, views: int) -> list[Camera]:
    """The bird's eye, then `views - 1` cameras inside; fewer views are a prefix of more."""
    room = mesh.room
    rng = room.key.rng("cameras")
    cameras = [bird_camera(room, rng)]
    candidates = [
        camera for camera in (_inside_camera(room, rng) for _ in range(CANDIDATES)) if camera
    ]
    seen = [_seen(mesh, camera) for camera in candidates]
    total = np.zeros(len(room.objects))
    azimuths: list[float] = []
    for _ in range(views - 1):
        if not candidates:
            cameras.append(_inside_camera(room, rng, tries=200) or cameras[0])
            continue
        scores = [
            np.minimum(total + found, 6).sum() + 12 * _spread(camera, azimuths)
            for camera, found in zip(candidates, seen, strict=True)
        ]
        best = int(np.argmax(scores))
        camera = candidates.pop(best)
        total += seen.pop(best)
        azimuths.append(_azimuth(camera))
        cameras.append(camera)
    return cameras


def bird_camera(room: Room, rng: np.random.Generator) -> Camera:
    """From above and a little from the south (x right, y up in the image), the room in frame."""
    slope = np.radians(rng.uniform(54, 64))
    focal = rng.uniform(1.15, 1.35)
    forward = np.array([0, np.cos(slope), -np.sin(slope)])
    down = np.array([0, -np.sin(slope), -np.cos(slope)])
    outline = room.plan.outline
    points = np.concatenate(
        [np.c_[outline, np.full(len(outline), z)] for z in (0, room.plan.height)]
    )
    # Each side of the frame bounds one half-space; the tightest pair sets the distance.
    reach = 0.48 / focal
    along = points @ forward
    spans = []
    for axis in (np.array([1.0, 0, 0]), down):
        across = points @ axis
        spans.append((np.max(across - reach * along), np.max(-across - reach * along)))
    distance = max((high + low) / (2 * reach) for high, low in spans)
    x, y = ((high - low) / 2 for high, low in spans)
    position = np.array([x, 0, 0]) + y * down - distance * forward
    return look_at(position, position + forward, focal)


def _inside_camera(room: Room, rng: np.random.Generator, tries: int = 12) -> Camera | None:
    """A person near a wall who looks at the middle of the room."""
    half = np.array([room.plan.width, room.plan.depth]) / 2
    centre = np.average(
        [((x0 + x1) / 2, (y0 + y1) / 2) for x0, x1, y0, y1 in room.plan.floors],
        axis=0,
        weights=[(x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in room.plan.floors],
    )
    for _ in range(tries):
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        spot = direction * ((half - 0.25) / np.maximum(np.abs(direction), 1e-6)).min()
        spot = spot * rng.uniform(0.9, 1.0)
        height = rng.uniform(*EYE_HEIGHT)
        target = np.array([*(centre + rng.uniform(-0.3, 0.3, 2)), rng.uniform(0.5, 0.8)])
        focal = rng.uniform(0.58, 0.72)
        if not room.plan.contains(spot, margin=0.2) or np.linalg.norm(spot - target[:2]) < 1.2:
            continue
        person = spot + 0.05 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        blocked = any(
            thing.top > 0.95 and gap(person, thing.footprint) < 0.25 for thing in room.objects
        )
        if not blocked:
            return look_at(np.array([*spot, height]), target, focal)
    return None


def _seen(mesh: RoomMesh, camera: Camera) -> np.ndarray:
    """Pixels of each object in a small probe image, at most 4 counted."""
    hits = mesh.embree.run(*camera.rays(PROBE, PROBE))
    index = mesh.object_index[hits[hits >= 0]]
    return np.minimum(np.bincount(index[index >= 0], minlength=len(mesh.room.objects)), 4)


def _azimuth(camera: Camera) -> float:
    forward = camera.cam_to_world[:3, 2]
    return float(np.arctan2(forward[1], forward[0]))


def _spread(camera: Camera, azimuths: list[float]) -> float:
    """0–1: how differently a camera looks from those chosen before it."""
    if not azimuths:
        return 0.0
    turns = np.abs(np.angle(np.exp(1j * (np.array(azimuths) - _azimuth(camera)))))
    return float(min(turns.min() / (np.pi / 2), 1.0))
