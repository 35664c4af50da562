"""What `synth_roomplan_instructions.py` can be given, told apart by looking."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxvlm.console import say
from jaxvlm.data.prep.files import read_json
from jaxvlm.data.prep.planes import find_planes
from jaxvlm.data.prep.roomplan import is_roomplan
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Scenes of one kind: "planes", "roomplan" or "records", each with where it lies."""

    kind: str
    scenes: dict[str, Path]


def find_inputs(paths: Sequence[Path]) -> Inputs:
    """Looks at files and folders.

    A folder holds scenes with `annotations/planes.json`, or RoomPlan exports `*.json`; a file is
    an export or holds records.

    Raises:
      UserError: nothing that is known, several kinds at once, or a folder's `*.json` that cannot be
        read.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        kind, scenes = _look(path)
        known = found.setdefault(kind, {})
        for name, place in scenes.items():
            if name in known:
                raise UserError(f"--input: {known[name]} and {place} have the same name {name!r}")
            known[name] = place
    if len(found) > 1:
        raise UserError(f"--input mixes {' and '.join(sorted(found))}; make a file of each")
    ((kind, scenes),) = found.items()
    return Inputs(kind, scenes)


def _look(path: Path) -> tuple[str, dict[str, Path]]:
    if path.is_dir():
        planes = find_planes(path)
        if planes:
            return "planes", {folder.name: folder for folder in planes}
        exports = _exports(path)
        if exports:
            return "roomplan", {p.stem: p for p in exports}
        hint = ""
        if next(path.glob("*/*_3dod_annotation.json"), None) is not None:
            hint = "; these are ARKitScenes: use prepare_arkit_from_3dod.py"
        raise UserError(
            f"--input {path} holds neither <scene>/annotations/planes.json nor RoomPlan exports "
            f"*.json{hint}"
        )
    if not path.is_file():
        raise UserError(f"--input {path} does not exist")
    if path.suffix == ".json" and is_roomplan(_decoded(path)):
        return "roomplan", {path.stem: path}
    try:
        first: Record = RecordFile(path)[0]
    except UserError as error:
        problem = f"--input {path} is neither a RoomPlan export nor a record file: {error}"
        raise UserError(problem) from None
    if first.action is None:
        raise UserError(f"--input {path}: its records have no 'action_json'")
    return "records", {path.stem: path}


def _exports(folder: Path) -> list[Path]:
    """The exports of a folder, without what a Mac leaves beside them (`._*`)."""
    files = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith("._")]
    exports = [path for path in files if is_roomplan(read_json(path))]
    others = len(files) - len(exports)
    if exports and others:
        say(
            f"warning: {folder}: passed over {others:,} of {len(files):,} *.json, which are no "
            "RoomPlan exports",
            warns=True,
        )
    return exports


def _decoded(path: Path) -> object:
    try:
        return read_json(path)
    except UserError:
        return None
