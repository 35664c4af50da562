"""Seconds a scene that preparations take, at the sizes of the real data sets.

    python scripts/bench/prep.py [--output FILE.json]

Writes one scene of ScanNet's layout (400 frames of 1296 x 968, depth 640 x 480), one of
ARKitScenes' (1,200 frames of 256 x 192) and a mesh of 400,000 faces into a temporary folder, runs
the work of each preparation on one core, and prints the median of the runs.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import result
import trimesh
from command_line import count, new_parser
from PIL import Image

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.data.boxes import Box
from jaxvlm.data.prep.anchor_scenes import AnchorScenes, Options
from jaxvlm.data.prep.bird_render import bird_view, read_mesh
from jaxvlm.data.prep.drawn import draw_scene
from jaxvlm.data.prep.questions import Question
from jaxvlm.data.prep.scanqa import ScanNetQuestions
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.mesh import room_mesh

SCENE = "scene0000_00"
ARKIT = "47330000"


def main(flags: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        jobs = {
            "prepare_scanqa, 8 of 400 frames": scannet(root / "scannet"),
            "prepare_arkit_from_3dod, 10 of 1,200 frames": arkit(root / "arkit"),
            "render_bird_views, 400,000 faces, 1024 pixels": bird(root / "mesh"),
            "drawn views, 25 boxes, 10 views of 448 pixels": drawn(),
        }
        seconds = {name: median(job, flags.runs) for name, job in jobs.items()}
    rows = [(name, f"{value:.2f}") for name, value in seconds.items()]
    print_table("Seconds a scene, one core", ("preparation", "seconds"), rows)
    result.write(flags.output, runs=flags.runs, seconds_a_scene=seconds)


def median(job: Callable[[], object], runs: int) -> float:
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        job()
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken), 3)


def noise(*shape: int) -> np.ndarray:
    """Smooth noise, which compresses about as a photograph does."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (shape[0] // 8, shape[1] // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def poses(count: int) -> np.ndarray:
    """Cameras that look around in a room."""
    angle = np.linspace(0, 4 * np.pi, count)
    found = np.tile(np.eye(4), (count, 1, 1))
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros(count)
    found[:, :3, :3] = np.stack(
        [sin, zero, cos, -cos, zero, sin, zero, zero - 1, zero], -1
    ).reshape(-1, 3, 3)
    found[:, :3, 3] = np.stack([2 * np.cos(angle / 3), 2 * np.sin(angle / 3), zero + 1.5], -1)
    return found


def copies(image: Image.Image, paths: list[Path]) -> None:
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    image.save(paths[0])
    for path in paths[1:]:
        shutil.copy(paths[0], path)


def scannet(root: Path) -> Callable[[], object]:
    folder, count = root / SCENE, 400
    copies(
        Image.fromarray(noise(968, 1296)),
        [folder / "color" / f"{i}.jpg" for i in range(count)],
    )
    depth = (noise(480, 640)[..., 0].astype(np.uint16) + 1) * 20
    copies(Image.fromarray(depth), [folder / "depth" / f"{i}.png" for i in range(count)])
    for name in ("pose", "intrinsic"):
        (folder / name).mkdir()
    for number, pose in enumerate(poses(count)):
        np.savetxt(folder / "pose" / f"{number}.txt", pose)
    k = np.eye(4)
    k[:2, :3] = [[1170, 0, 648], [0, 1170, 484]]
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", k)
    questions = [Question(str(i), SCENE, f"What is {i}?", ("chair",)) for i in range(50)]
    return lambda: ScanNetQuestions(
        "scanqa", {SCENE: questions}, root, 8, "coverage", True, False, 0
    )(SCENE)


def arkit(root: Path) -> Callable[[], object]:
    folder, count = root / ARKIT / f"{ARKIT}_frames", 1200
    times = [1000 + i / 10 for i in range(count)]
    stems = [f"{ARKIT}_{time:.3f}" for time in times]
    copies(Image.fromarray(noise(192, 256)), [folder / "lowres_wide" / f"{s}.png" for s in stems])
    depth = (noise(192, 256)[..., 0].astype(np.uint16) + 1) * 20
    copies(Image.fromarray(depth), [folder / "lowres_depth" / f"{s}.png" for s in stems])
    (folder / "lowres_wide_intrinsics").mkdir()
    for stem in stems:
        path = folder / "lowres_wide_intrinsics" / f"{stem}.pincam"
        path.write_text("256 192 211.9 211.9 127.9 95.9\n")
    lines = []
    for time_, pose in zip(times, poses(count), strict=True):
        inverse = np.linalg.inv(pose)
        turn = trimesh.transformations.rotation_from_matrix(inverse)
        lines.append(" ".join(map(str, (time_, *(turn[0] * turn[1]), *inverse[:3, 3]))))
    (folder / "lowres_wide.traj").write_text("\n".join(lines))
    objects = [
        {
            "uid": str(i),
            "label": "chair",
            "segments": {
                "obbAligned": {
                    "centroid": [3 * np.cos(i), 3 * np.sin(i), 0.5],
                    "axesLengths": [0.5 + i / 50, 0.6, 0.9],
                    "normalizedAxes": [1, 0, 0, 0, 1, 0, 0, 0, 1],
                }
            },
        }
        for i in range(15)
    ]
    annotation = root / ARKIT / f"{ARKIT}_3dod_annotation.json"
    annotation.write_text(json.dumps({"data": objects}))
    options = Options(10, "coverage", "first_camera", None, None, 448, None, None, 0)
    return lambda: AnchorScenes("arkit", {ARKIT: root / ARKIT}, options)(ARKIT)


def bird(root: Path) -> Callable[[], object]:
    mesh = room_mesh(generate_room(0, "val", 0))
    faces = np.arange(3 * len(mesh.corners)).reshape(-1, 3)
    whole = trimesh.Trimesh(mesh.corners.reshape(-1, 3), faces, process=False)
    while len(whole.faces) < 400_000:
        whole = whole.subdivide()
    whole.update_faces(np.arange(len(whole.faces)) < 400_000)
    colours = np.random.default_rng(0).integers(0, 255, (len(whole.vertices), 3), np.uint8)
    whole = trimesh.Trimesh(whole.vertices, whole.faces, vertex_colors=colours, process=False)
    folder = root / SCENE
    folder.mkdir(parents=True)
    path = folder / f"{SCENE}_vh_clean_2.ply"
    whole.export(path)
    return lambda: bird_view(*read_mesh(path), 1024)


def drawn() -> Callable[[], object]:
    axes = np.eye(3)[[0, 2, 1]] * [[1], [1], [-1]]
    names = ("chair", "table", "sofa", "cabinet", "bed")
    boxes = [
        Box(str(i), "object", names[i % 5], np.array([i % 5 * 1.5, i // 5 * 1.5, 0.4]), axes,
            np.array([0.6, 0.8, 0.6]))
        for i in range(25)
    ]  # fmt: skip
    return lambda: draw_scene(boxes, [], 10, 448)


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--runs", type=count, default=3, help="how often each is measured")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
