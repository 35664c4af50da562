"""Evaluated scenes as a recording for the Rerun viewer: cameras, photographs, boxes."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jaxvlm.data.boxes import Box, action_box
from jaxvlm.data.frames import upright
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError
from jaxvlm.files import draft_of

_COLOURS = {"true": (0, 135, 62), "predicted": (194, 24, 91)}


def write_rerun(
    path: Path, lines: Iterable[Mapping], record: Callable[[Mapping], Record], title: str
) -> None:
    """Writes a recording; a scene is a branch of its tree.

    Args:
      path: of the file, which ends in .rrd.
      lines: scored lines of actions.
      record: the record of a line.
      title: what the viewer calls the recording.

    Raises:
      UserError: the library is not installed, or the file cannot be written.
    """
    try:
        import rerun
    except ImportError:
        raise UserError(
            "--rerun needs the package rerun-sdk: pip install -c constraints.txt -e '.[rerun]'"
        ) from None
    if path.suffix != ".rrd":
        raise UserError(f"--rerun {path}: expected a name that ends in .rrd")
    shown: dict[tuple[str, ...], list[Mapping]] = {}
    for line in lines:
        shown.setdefault(tuple(line["images"]), []).append(line)
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rerun.RecordingStream(title) as recording:
            recording.save(str(draft))
            recording.log("/", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
            for number, (images, asked) in enumerate(shown.items()):
                known = record(asked[0]).first_views(len(images))
                branch = rerun.escape_entity_path_part(f"{known.scene_id} {number}")
                _log_cameras(recording, branch, known)
                for kind, field in (("true", "reference"), ("predicted", "predicted_action")):
                    boxes = [action_box(line[field], known.up, line["kind"]) for line in asked]
                    _log_boxes(recording, f"{branch}/{kind}", boxes, _COLOURS[kind])
            recording.flush()
            recording.disconnect()
        draft.replace(path)
    except OSError as error:
        raise UserError(f"--rerun {path} cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _log_cameras(recording, branch: str, record: Record) -> None:
    import rerun

    poses = record.poses()
    for view, image in enumerate(record.images):
        at = f"{branch}/view_{view}"
        if poses is not None:
            turn = upright(record.up)
            place = {"mat3x3": turn @ poses[0][view], "translation": turn @ poses[1][view]}
            recording.log(at, rerun.Transform3D(**place), static=True)
            if "K" in record.geometry and record.image_size:
                matrix = record.geometry["K"][view].reshape(3, 3)
                pinhole = rerun.Pinhole(
                    image_from_camera=matrix,
                    resolution=record.image_size,
                    camera_xyz=rerun.ViewCoordinates.RDF,
                    image_plane_distance=0.5,
                )
                recording.log(f"{at}/image", pinhole, static=True)
        if Path(image).is_file():
            recording.log(f"{at}/image", rerun.EncodedImage(path=image), static=True)


def _log_boxes(recording, at: str, boxes: list[Box | None], colour: tuple[int, int, int]) -> None:
    import rerun
    from scipy.spatial.transform import Rotation

    known = [box for box in boxes if box is not None]
    if not known:
        return
    recording.log(
        at,
        rerun.Boxes3D(
            centers=[box.centre for box in known],
            half_sizes=[box.size / 2 for box in known],
            quaternions=[Rotation.from_matrix(box.axes.T).as_quat() for box in known],
            labels=[box.name for box in known],
            colors=[colour] * len(known),
        ),
        static=True,
    )
