"""Sources: record files with weights, checked completely before anything is computed."""

import dataclasses
import difflib
import glob
import hashlib
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxvlm.data.images import check_image
from jaxvlm.data.records import Record, read_records
from jaxvlm.errors import UserError

FIELDS = ("path", "weight", "task")
_READERS = 16


@dataclasses.dataclass(frozen=True)
class Source:
    """Records that are drawn with one weight.

    Attributes:
      path: the path or glob they came from.
      weight: share of the samples drawn from this source, relative to the others'.
      records: the records, image paths resolved to files that exist.
      fingerprint: SHA-256 of what the records say and of which are left out; where the images lie
        is not part of it.
    """

    path: str
    weight: float
    records: list[Record]
    fingerprint: str


def load_sources(
    specs: Sequence[Mapping], image_roots: Sequence[str], missing_images: str
) -> list[Source]:
    """Reads every record file of a split and looks at every image file.

    Args:
      specs: mappings with `path` (or a glob), `weight` and optionally `task`, which
        keeps the records of that task only.
      image_roots: folders that relative image paths are tried in, after the record file's own.
      missing_images: "error" stops at the first missing image; "skip" drops its record, counted.

    Raises:
      UserError: naming the file and line, the image, the field, or the glob that matches nothing.
    """
    if missing_images not in ("error", "skip"):
        raise UserError(f'data.missing_images is {missing_images!r}; expected "error" or "skip"')
    if not specs:
        raise UserError("the split names no source; give at least one {'path': …, 'weight': …}")
    for spec in specs:
        if not isinstance(spec, Mapping):
            raise UserError(
                f"a data source is a mapping like {{'path': 'train.jsonl', 'weight': 1.0}}, "
                f"found {spec!r}"
            )
    return [_load(dict(spec), image_roots, missing_images) for spec in specs]


def _load(spec: dict, image_roots: Sequence[str], missing_images: str) -> Source:
    for name in spec:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, 1) or FIELDS
            raise UserError(f"a data source has the unknown field {name!r}; did you mean {close}?")
    path, weight = spec.get("path"), spec.get("weight", 1.0)
    if not isinstance(path, str) or not path:
        raise UserError(f"a data source needs a 'path', found {path!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
        raise UserError(
            f"the weight of source {path!r} must be a positive number below 1e9, found {weight}"
        )
    files = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    if not files:
        raise UserError(f"no file matches the data source {path!r}")
    records = [record for file in files for record in read_records(file)]
    if spec.get("task"):
        records = [record for record in records if record.task == spec["task"]]
        if not records:
            raise UserError(f"source {path!r} holds no record of the task {spec['task']!r}")
    kept = resolve_images(records, image_roots, missing_images, path)
    return Source(path, float(weight), kept, _fingerprint(records, kept))


def _fingerprint(records: list[Record], kept: list[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        fields = {**vars(record), "origin": None, "geometry": None}
        digest.update(repr(sorted(fields.items())).encode())
        for name, values in sorted((record.geometry or {}).items()):
            digest.update(name.encode() + values.tobytes())
    if len(kept) < len(records):
        digest.update(repr([record.origin.rsplit(":", 1)[1] for record in kept]).encode())
    return digest.hexdigest()


def resolve_images(
    records: list[Record], image_roots: Sequence[str], missing_images: str, name: str
) -> list[Record]:
    """Replaces every record's image paths by paths of existing files."""
    found: dict[tuple[str, str], str | None] = {}
    kept = []
    for record in records:
        folder = str(Path(record.origin.rsplit(":", 1)[0]).parent)
        paths = []
        for image in record.images:
            if (folder, image) not in found:
                found[folder, image] = _find(image, (folder, *image_roots))
            paths.append(found[folder, image])
        if None not in paths:
            kept.append(dataclasses.replace(record, images=tuple(paths)))
        elif missing_images == "error":
            image = record.images[paths.index(None)]
            roots = ", ".join((folder, *image_roots))
            raise UserError(
                f"{record.origin}: the image {image!r} does not exist (looked in {roots}); set "
                "data.image_roots, or data.missing_images='skip' to leave such records out"
            )
    if len(kept) < len(records):
        print(f"{name}: left out {len(records) - len(kept)} of {len(records)} records "
              "whose images are missing", file=sys.stderr)  # fmt: skip
    if not kept:
        raise UserError(f"{name}: no record is left; every one misses an image")
    _check_images(kept)
    return kept


def _check_images(records: list[Record]) -> None:
    """Opens every image once; on a network's file system many at a time are much faster."""
    first = {image: record.origin for record in reversed(records) for image in record.images}

    def problem(item: tuple[str, str]) -> str | None:
        try:
            check_image(item[0])
        except UserError as error:
            return f"{item[1]}: {error}"
        return None

    with ThreadPoolExecutor(_READERS) as pool:
        problems = [text for text in pool.map(problem, first.items()) if text]
    if problems:
        more = f" (and {len(problems) - 1} more such images)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)


def _find(image: str, roots: Sequence[str]) -> str | None:
    if Path(image).is_absolute():
        return image if Path(image).is_file() else None
    return next((str(p) for root in roots if (p := Path(root, image)).is_file()), None)
