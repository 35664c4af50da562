"""What the images of a feature cache are: SHA-256 of every file, noted with its size and age."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jaxvlm.console import say_once
from jaxvlm.data.audit.images import stamp
from jaxvlm.errors import UserError
from jaxvlm.files import write_text

_IMAGES = "images.json"
_READERS = 16


class KnownImage(NamedTuple):
    """An image file as it was: size and time of change, and SHA-256."""

    stamp: list | None
    digest: str


def known_images(folder: Path, images: Iterable[str]) -> dict[str, KnownImage]:
    """What image files are; those that are as the cache knows them are not read.

    Raises:
      UserError: an image that cannot be read.
    """
    known = noted_images(folder)

    def look(image: str) -> KnownImage:
        # Before it is read: what changes later will be noticed.
        now = stamp_of(image)
        if image in known and known[image].stamp == now:
            return known[image]
        try:
            with Path(image).open("rb") as file:
                return KnownImage(now, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"the image {image!r} cannot be read: {error.strerror}") from None

    images = list(dict.fromkeys(images))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(images, pool.map(look, images), strict=True))


def note_images(folder: Path, images: Mapping[str, KnownImage]) -> None:
    """Notes the images of a cache, so that the next start need not read them."""
    try:
        write_text(folder / _IMAGES, json.dumps({**noted_images(folder), **images}) + "\n")
    except OSError as error:
        say_once(
            f"warning: {folder / _IMAGES} cannot be written ({error.strerror}); every start will "
            "read all images to know them"
        )


def noted_images(folder: Path) -> dict[str, KnownImage]:
    """The noted images; nothing where the file is missing or damaged."""
    try:
        noted = json.loads((folder / _IMAGES).read_text(encoding="utf-8"))
        return {image: KnownImage(entry[0], str(entry[1])) for image, entry in noted.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def stamp_of(image: str) -> list | None:
    """Size and time of change of an image file."""
    found = stamp(image)
    return found and list(found)
