"""What can be wrong with a record, apart from its image files: one table, one function a record."""

import csv
import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from jaxvlm.data.actions.language import problem
from jaxvlm.data.frames import NOT_ORTHONORMAL, first_camera_frame, is_level, upright
from jaxvlm.data.geometry import looked_at
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError

ERROR, WARNING = "error", "warning"

# Every check of the audit, in the order of its table.
CHECKS = {
    "byte-order-mark": "the file begins with a byte order mark",
    "windows-line-ends": "lines end as on Windows",
    "invalid-utf8": "bytes that are no UTF-8 text",
    "malformed-json": "a record that is no JSON",
    "schema": "a field that is absent or of another type",
    "image-missing": "an image that does not exist",
    "image-unreadable": "an image that cannot be decoded",
    "image-size": "an image of another size than image_size, or too small",
    "image-scene-mismatch": "an image of another scene than scene_id",
    "duplicate-row": "question, answer, scene and situation of an earlier row",
    "duplicate-question-id": "a question_id that an earlier, different row has",
    "instruction-conflict": "an instruction that an earlier row answers with another action",
    "scene-in-both": "a scene that train and test share",
    "answer-empty": "no answer",
    "answer-too-long": "an answer of more than 64 words",
    "geometry-not-finite": "poses, intrinsics or depths with inf, NaN or absurd numbers",
    "pose-not-orthonormal": "a rotation that is none",
    "pose-frame": "a first view that is not where the frame says",
    "pose-units": "cameras more than 50 m apart",
    "intrinsics-misfit": "intrinsics that do not fit the image",
    "depth-histogram": "a depth histogram that does not add up to 1",
    "action-fields": "an action that docs/actions.md does not know, or with wrong fields",
    "action-units": "an extent over 50 m",
    "action-normal": "a normal that is not of length 1",
    "action-unseen": "an action whose centre no view looks at",
}
LONGEST_ANSWER = 64
LARGEST_ROOM = 50.0
_SUM = _UNIT = 1e-2
# A surface counts as level within 8 degrees.
_TILT = 0.15
SMALLEST_IMAGE = 28
_SCANNET = re.compile(r"scene\d{4}_\d{2}")
# ARKitScenes names its scans by numbers.
_ARKIT = re.compile(r"\d{8}")
_ARKIT_FILE = re.compile(r"(\d{8})_\d+(\.\d+)?\.")
_SCANNET_ROOM = re.compile(r"(scene\d{4})_\d{2}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One finding: the check, "error" or "warning", and the message with `file:line`."""

    check: str
    level: str
    message: str


def check_record(record: Record) -> list[Problem]:
    """Everything that is wrong with what a record says; its image files are not looked at."""
    problems = []

    def found(check: str, text: str, level: str = ERROR) -> None:
        problems.append(Problem(check, level, f"{record.origin}: {text}"))

    if not record.answer:
        found("answer-empty", "no answer; give 'answer', 'answers' or 'action_json'")
    words = max((len(answer.split()) for answer in record.answers), default=0)
    if record.action is None and words > LONGEST_ANSWER:
        found("answer-too-long", f"an answer of {words} words", WARNING)
    if record.geometry is not None:
        _check_poses(record, found)
        _check_intrinsics(record, found)
        _check_depths(record, found)
    if record.action is not None:
        _check_action(record, found)
    return problems


def _check_poses(record: Record, found) -> None:
    poses = record.poses()
    if poses is None:
        return
    rotation, translation = poses
    off = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max((-1, -2))
    bad = (off > NOT_ORTHONORMAL) | (np.linalg.det(rotation) < 0)
    if bad.any():
        view = int(np.argmax(bad))
        mirrored = (
            "it mirrors" if off[view] <= NOT_ORTHONORMAL else f"R Rᵀ is off by {off[view]:.2g}"
        )
        found(
            "pose-not-orthonormal",
            f"geom_token.R of view {view} is no rotation ({mirrored}); give camera-to-world "
            "rotations, row-major",
        )
    if record.frame == "first_camera" and not _is_first_camera(rotation[0], translation[0]):
        found(
            "pose-frame",
            'the record says frame "first_camera", but view 0 does not stand at the origin looking '
            "along +y; was the first view changed?",
        )
    spread = float(np.ptp(translation, axis=0).max())
    if spread > LARGEST_ROOM:
        found(
            "pose-units",
            f"the cameras of geom_token.t stand {spread:g} m apart; give metres (are these "
            "millimetres?)",
        )


def _is_first_camera(rotation: np.ndarray, translation: np.ndarray) -> bool:
    frame = first_camera_frame(rotation, translation)
    return bool(
        np.abs(translation).max() < 1e-2 and np.abs(frame.rotation - np.eye(3)).max() < 1e-2
    )


def _check_intrinsics(record: Record, found) -> None:
    matrices = record.geometry.get("K")
    if matrices is None:
        return
    if record.image_size is None:
        found("intrinsics-misfit", "geom_token.K needs 'image_size' [width, height] in pixels")
        return
    width, height = record.image_size
    fx, fy, cx, cy = (matrices[:, i] for i in (0, 4, 2, 5))
    longest = max(width, height)
    checks = [
        ((matrices[:, 6:] != (0, 0, 1)).any(-1), "its last row is not 0 0 1"),
        (
            (np.minimum(fx, fy) < 0.2 * longest) | (np.maximum(fx, fy) > 10 * longest),
            "its focal length is",
        ),
        ((cx <= 0) | (cx >= width) | (cy <= 0) | (cy >= height), "its centre lies"),
    ]
    for bad, what in checks:
        if bad.any():
            view = int(np.argmax(bad))
            focal, centre = (f"{a[view]:g} x {b[view]:g}" for a, b in ((fx, fy), (cx, cy)))
            detail = {"its focal length is": f" {focal}", "its centre lies": f" at {centre}"}
            found(
                "intrinsics-misfit",
                f"geom_token.K of view {view} does not fit an image of {width} x {height} pixels: "
                f"{what}{detail.get(what, '')}; K is in pixels of 'image_size'",
            )
            return
    off = (np.abs(cx - width / 2) > 0.2 * width) | (np.abs(cy - height / 2) > 0.2 * height)
    if off.any():
        view = int(np.argmax(off))
        found(
            "intrinsics-misfit",
            f"geom_token.K of view {view} has its centre at {cx[view]:g} x {cy[view]:g}, far from "
            f"the middle of {width} x {height} pixels; is it of another image size?",
            WARNING,
        )


def _check_depths(record: Record, found) -> None:
    histogram = record.geometry.get("depth_hist")
    if histogram is None:
        return
    total = histogram.sum(-1)
    # A view without any known depth has zeros.
    bad = (np.abs(total - 1) > _SUM) & histogram.any(-1) | (histogram < 0).any(-1)
    if bad.any():
        view = int(np.argmax(bad))
        found(
            "depth-histogram",
            f"geom_token.depth_hist of view {view} adds up to {total[view]:.4g}; give fractions "
            "over 0-10 m (zeros where no depth is known)",
        )


def _check_action(record: Record, found) -> None:
    action, learnt = record.action, record.learnt_action()
    extent = learnt.get("extent") or [0]
    if max(extent) > LARGEST_ROOM:
        found(
            "action-units",
            f"action_json.extent {extent} is over {LARGEST_ROOM:g} m; give metres (are these "
            "millimetres?)",
        )
        return
    wrong = problem(learnt)
    if wrong is not None:
        found("action-fields", wrong)
        return
    if action["scene"] != record.scene_id:
        found(
            "action-fields",
            f"action_json is for the scene {action['scene']!r}, the record for {record.scene_id!r}",
        )
    if not {"center", "normal", "extent"} <= action.keys():
        return
    axis = action.get("axis")
    if axis is not None and not _lies_level(action["normal"], axis, record.up):
        found(
            "action-fields",
            f"action_json.axis {axis} must be of length 1 and at right angles to the "
            "normal of a level surface; leave it out of anything else",
        )
    length = float(np.linalg.norm(action["normal"]))
    if abs(length - 1) > _UNIT:
        found("action-normal", f"action_json.normal is of length {length:.3g}, not 1")
    if not _seen(record):
        found("action-unseen", "no view looks at action_json.center", WARNING)


def _lies_level(normal: Sequence[float], axis: Sequence[float], up: str) -> bool:
    """Whether an axis can be that of a level surface with this normal."""
    normal = np.asarray(normal, np.float64) / np.linalg.norm(normal)
    length, along = np.linalg.norm(axis), abs(normal @ np.asarray(axis, np.float64))
    return is_level(upright(up) @ normal) and abs(length - 1) <= _UNIT and along <= _TILT


def _seen(record: Record) -> bool:
    """Whether the action's centre lies in some image; true where that can't be told."""
    geometry = record.geometry or {}
    if record.image_size is None or not {"R", "K"} <= geometry.keys():
        return True
    centre = np.array([record.action["center"]], np.float64)
    return bool(looked_at(centre, geometry, record.image_size).any())


def other_scene(image: str, scene_id: str, scenes: Container[str]) -> str | None:
    """The scene that an image's path names, where it is another than `scene_id`.

    Args:
      image: a path. A ScanNet name anywhere in it counts, the last one most, and the number that
        ARKitScenes begins its files' names with; a name in `scenes` counts where it is a folder's,
        or the file's up to `_bird`.
      scene_id: the record's.
      scenes: all scene ids of the file.
    """
    named = _SCANNET.findall(image)
    if named and _SCANNET.fullmatch(scene_id):
        return named[-1] if named[-1] != scene_id else None
    path = PurePath(image)
    scan = _ARKIT_FILE.match(path.name)
    if scan and _ARKIT.fullmatch(scene_id):
        return scan.group(1) if scan.group(1) != scene_id else None
    names = [*path.parts[:-1], path.stem.removesuffix("_bird")]
    if scene_id in names or not scene_id:
        return None
    # A number may be anything: a year, a view.
    others = [name for name in names if name in scenes and not name.isdecimal()]
    return others[-1] if others else None


def room_of(scene_id: str, rooms: Mapping[str, str]) -> str:
    """The room of a scene: ScanNet and others scan one several times.

    Args:
      scene_id: a record's.
      rooms: rooms of scenes whose names don't tell them (`read_rooms`).
    """
    named = _SCANNET_ROOM.fullmatch(scene_id)
    return rooms.get(scene_id) or (named.group(1) if named else scene_id)


def read_rooms(path: Path) -> dict[str, str]:
    """Which scenes are of one room, from a table such as the metadata.csv of ARKitScenes.

    Raises:
      UserError: it cannot be read, or lacks the columns video_id and visit_id.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--rooms {path} cannot be read: {error}") from None
    if not rows or not {"video_id", "visit_id"} <= rows[0].keys():
        raise UserError(
            f"--rooms {path}:1: expected a CSV file with the columns video_id (the scene) and "
            "visit_id (its room)"
        )
    return {row["video_id"]: row["visit_id"] for row in rows if row["visit_id"] not in ("", "NA")}
