"""What can be wrong with the images of records: each file is looked at once."""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from jaxvlm.data.audit.checks import ERROR, SMALLEST_IMAGE, WARNING, other_scene
from jaxvlm.data.audit.findings import Findings
from jaxvlm.data.images import check_image, image_candidates
from jaxvlm.data.items import RecordError
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError

_READERS = 16
# From a title and a total to what yields the function that counts.
Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]


@dataclasses.dataclass(frozen=True)
class Flaw:
    """What is wrong with the use of an image."""

    check: str
    text: str
    level: str = ERROR


@dataclasses.dataclass(frozen=True)
class ImageUse:
    """How a record uses an image; records of one scene share it."""

    folder: str
    image: str
    scene_id: str
    image_size: tuple[int, int] | None


def image_uses(record: Record) -> Iterator[ImageUse]:
    """How a record uses each of its images."""
    folder = str(Path(record.origin.rsplit(":", 1)[0]).parent)
    for image in record.images:
        yield ImageUse(folder, image, record.scene_id, record.image_size)


def check_uses(
    findings: Findings,
    uses: dict[ImageUse, None],
    image_roots: Sequence[str],
    look: bool,
    progress: Progress,
) -> dict[ImageUse, list[Flaw]]:
    """What is wrong with each use of an image."""
    problems: dict[ImageUse, list[Flaw]] = {}
    for use in uses:
        other = other_scene(use.image, use.scene_id, findings.scenes)
        if other is not None:
            text = f"the image {use.image!r} is of {other!r}, the record of {use.scene_id!r}"
            problems.setdefault(use, []).append(Flaw("image-scene-mismatch", text))
    if not look:
        return problems
    where = {(use.folder, use.image): None for use in uses}
    looked = look_at_images(where, image_roots, progress)
    for use in uses:
        look_result = looked[use.folder, use.image]
        findings.images |= look_result.seen
        flaw = look_result.flaw(use)
        if flaw is not None:
            problems.setdefault(use, []).append(flaw)
    return problems


def attach(findings: Findings, problems: dict[ImageUse, list[Flaw]]) -> None:
    """Finds the records of the uses; records are read again, for few files need it."""
    for index in range(len(findings.file)):
        try:
            record = findings.file[index]
        except RecordError:
            continue
        found = [p for use in dict.fromkeys(image_uses(record)) for p in problems.get(use, ())]
        # One finding of a kind is enough for a record, however many views it has.
        for flaw in {flaw.check: flaw for flaw in reversed(found)}.values():
            findings.add(index, flaw.check, flaw.text, flaw.level)


@dataclasses.dataclass(frozen=True)
class Look:
    """What looking at an image file gave.

    Attributes:
      path: where it was found, or None.
      size: (width, height) in pixels, or None.
      error: why it cannot be read, or None.
      seen: of each path that was tried, bytes and time of change, or None.
      tried: the paths it was looked for at, where there is no image.
    """

    path: str | None
    size: tuple[int, int] | None
    error: str | None
    seen: dict[str, tuple[int, int] | None]
    tried: tuple[str, ...] = ()

    def flaw(self, use: ImageUse) -> Flaw | None:
        """What is wrong with a record's use of the image."""
        if self.path is None:
            text = (
                f"the image {use.image!r} does not exist (looked for {', '.join(self.tried)}); "
                "put it there, or name its folder as an image root"
            )
            if "\\" in use.image:
                text += "; write / instead of \\"
            return Flaw("image-missing", text)
        if self.error is not None:
            return Flaw("image-unreadable", self.error)
        found = f"the image {use.image!r} has {self.size[0]} x {self.size[1]} pixels"
        if use.image_size is not None and use.image_size != self.size:
            width, height = use.image_size
            return Flaw("image-size", f"{found}, image_size says {width} x {height}")
        if min(self.size) < SMALLEST_IMAGE:
            return Flaw("image-size", f"{found}; little can be seen on it", WARNING)
        return None


def look_at_images(
    images: Collection[tuple[str, str]], image_roots: Sequence[str], progress: Progress
) -> dict[tuple[str, str], Look]:
    """Finds and decodes images, many at a time, for a network's file system is slow.

    Args:
      images: (folder of the record file, path as written).
      image_roots: folders to look in after the record file's own.
      progress: shows how many are done.
    """

    def look(item: tuple[str, str]) -> Look:
        folder, image = item
        candidates = image_candidates(image, (folder, *image_roots))
        seen: dict[str, tuple[int, int] | None] = {}
        for candidate in candidates:
            seen[candidate] = stamp(candidate)
            if seen[candidate] is not None:
                break
        else:
            return Look(None, None, None, seen, tuple(candidates))
        try:
            return Look(candidate, check_image(candidate), None, seen)
        except UserError as error:
            return Look(candidate, None, str(error), seen)

    looked = {}
    with ThreadPoolExecutor(_READERS) as pool, progress("images", len(images)) as advance:
        for item, result in zip(images, pool.map(look, images), strict=True):
            looked[item] = result
            advance()
    return looked


def stamp(path: str) -> tuple[int, int] | None:
    """Bytes and time of change of a file, or None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if Path(path).is_file() else None
