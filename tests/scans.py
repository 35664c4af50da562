"""Small scans in the layouts of ScanNet and ARKitScenes; preparation scripts as functions."""

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvlm.data.boxes import Box
from jaxvlm.data.prep.drawn import scene_mesh
from jaxvlm.render.camera import Camera, look_at
from jaxvlm.render.mesh import Mesh
from jaxvlm.render.raycast import render
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.mesh import room_mesh

SCRIPTS = Path(__file__).parent.parent / "scripts" / "prep"


def run_script(name: str, *arguments: object) -> None:
    """Runs a script's main with these flags, in this process and with one worker."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(module.parser().parse_args([str(argument) for argument in arguments]))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def turned(angle: float, shift: Sequence[float]) -> np.ndarray:
    """A levelling matrix: a turn about z and a shift."""
    matrix = np.eye(4)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 3] = shift
    return matrix


@dataclasses.dataclass(frozen=True)
class ScanNetScan:
    """What was written: the mesh and the cameras of the frames by their number, levelled world."""

    folder: Path
    mesh: Mesh
    cameras: dict[int, Camera]
    colour_size: tuple[int, int]


def write_scannet(
    root: Path, scene_id: str, seed: int = 0, frames: int = 10, lost: int = 2
) -> ScanNetScan:
    """A scene as SensReader exports it; colour and depth differ in size, some poses are -inf."""
    folder = root / scene_id
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    room = generate_room(0, "val", seed)
    mesh = room_mesh(room)
    rng = np.random.default_rng(seed)
    colour, depth = (64, 48), (40, 30)
    alignment = turned(0.4 + seed, (1.5, -2.0, 0.3))
    cameras = {}
    for index in range(frames + lost):
        # SensReader numbers every frame; exports often keep every twentieth.
        number = 20 * index
        angle = 2 * np.pi * index / (frames + lost)
        spot = np.array([0.6 * np.cos(angle), 0.6 * np.sin(angle), 1.5 + 0.1 * rng.random()])
        ahead = np.array([np.cos(angle + 0.5), np.sin(angle + 0.5), -0.3])
        camera = look_at(spot, spot + ahead, 0.8)
        view = render(mesh, camera, colour)
        Image.fromarray(view.rgb).save(folder / "color" / f"{number}.jpg", quality=95)
        metres = render(mesh, camera, depth).depth
        millimetres = Image.fromarray(np.round(metres * 1000).astype(np.uint16))
        millimetres.save(folder / "depth" / f"{number}.png")
        pose = np.linalg.inv(alignment) @ camera.cam_to_world
        if index < lost:
            pose = np.full((4, 4), -np.inf)
        else:
            cameras[number] = camera
        np.savetxt(folder / "pose" / f"{number}.txt", pose, fmt="%.6f")
    for name, size in (("color", colour), ("depth", depth)):
        k = np.eye(4)
        k[:3, :3] = next(iter(cameras.values())).intrinsics(*size)
        np.savetxt(folder / "intrinsic" / f"intrinsic_{name}.txt", k, fmt="%.6f")
        np.savetxt(folder / "intrinsic" / f"extrinsic_{name}.txt", np.eye(4), fmt="%.6f")
    numbers = " ".join(f"{v:.6f}" for v in alignment.ravel())
    (folder / f"{scene_id}.txt").write_text(
        f"axisAlignment = {numbers}\ncolorHeight = {colour[1]}\ncolorWidth = {colour[0]}\n"
        f"depthHeight = {depth[1]}\ndepthWidth = {depth[0]}\nsceneType = Bedroom\n"
    )
    return ScanNetScan(folder, mesh, cameras, colour)


ARKIT_SIZE = (64, 48)
ARKIT_BOX = Box(
    "box-1",
    "object",
    "cabinet",
    np.array([0.4, 0.9, 0.35]),
    # A front between the axes of the world.
    np.array([[np.cos(0.3), np.sin(0.3), 0], [0, 0, 1], [np.sin(0.3), -np.cos(0.3), 0]]),
    np.array([0.9, 0.7, 0.4]),
)


def write_arkit(
    root: Path, scene: str, nested: bool, box: Box = ARKIT_BOX, frames: int = 9
) -> Path:
    """A scene in Apple's layout with one box that every camera looks at; nothing hides it.

    `nested` puts the frames under `<id>/<id>_frames`, else directly under `<id>`.
    """
    folder = root / scene
    inside = folder / f"{scene}_frames" if nested else folder
    for name in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (inside / name).mkdir(parents=True)
    floor = np.array([(-4, -4, 0), (4, -4, 0), (4, 4, 0), (-4, 4, 0)], np.float64)
    mesh = scene_mesh([box], [floor])
    lines = []
    for index in range(frames):
        time = 57352.271 + index * 0.1
        angle = np.pi * (0.9 + 0.9 * index / frames)
        spot = np.array([2.2 * np.cos(angle), 0.9 + 2.2 * np.sin(angle), 1.5])
        aim = np.array([0.2 * np.sin(index), 0.1, 0.2])
        camera = look_at(spot, box.centre + aim, 0.8)
        view = render(mesh, camera, ARKIT_SIZE)
        stem = f"{scene}_{time:.3f}"
        Image.fromarray(view.rgb).save(inside / "lowres_wide" / f"{stem}.png")
        depth = Image.fromarray(np.round(view.depth * 1000).astype(np.uint16))
        depth.save(inside / "lowres_depth" / f"{stem}.png")
        k = camera.intrinsics(*ARKIT_SIZE)
        numbers = (*ARKIT_SIZE, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        pincam = inside / "lowres_wide_intrinsics" / f"{scene}_{time + 0.001:.3f}.pincam"
        pincam.write_text(" ".join(f"{v:g}" for v in numbers) + "\n")
        world_to_camera = np.linalg.inv(camera.cam_to_world)
        turn = _axis_angle(world_to_camera[:3, :3])
        # The trajectory's clock is a little off the images'.
        row = (time + 0.003 * (index % 2), *turn, *world_to_camera[:3, 3])
        lines.append(" ".join(f"{v:.9f}" for v in row))
    (inside / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    annotation = {"data": [arkit_object(box)], "skipped": False}
    (folder / f"{scene}_3dod_annotation.json").write_text(json.dumps(annotation))
    return folder


def arkit_object(box: Box) -> dict:
    """A box as Apple annotates it: rows of normalizedAxes are axes, lengths are full."""
    right, up, front = box.axes
    # Apple's order: any horizontal axis first; the last is up.
    return {
        "uid": box.name,
        "label": box.category,
        "segments": {
            "obbAligned": {
                "centroid": box.centre.tolist(),
                "axesLengths": [box.size[0], box.size[2], box.size[1]],
                "normalizedAxes": [*right, *(-front), *up],
            },
            "obb": {"centroid": [9e3, 9e3, 9e3]},
        },
    }


def _axis_angle(rotation: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    skew = rotation - rotation.T
    axis = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    return axis / np.linalg.norm(axis) * angle
