"""The feature cache: what VGGT makes of image sets, computed once and read ever after.

<folder>/cache.json                      what the features were made from, and their sizes
<folder>/images.json                     SHA-256 of every image, with its size and time of change
<folder>/features-00000.safetensors …    [tokens, width] of each subset of views

A tensor is named by the contents of its views' images, in order. What else it depends on (weights,
sizes, framing, precision) is the same for the whole folder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxvlm.data.audit.images import stamp
from jaxvlm.data.features.shards import DTYPES, Shards
from jaxvlm.errors import UserError
from jaxvlm.files import write_text

FORMAT = 1
_ABOUT, _IMAGES = "cache.json", "images.json"
_READERS = 16
_AGAIN = "python -m jaxvlm.cache_features with the same --config"


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features by the images they were made from.

    Attributes:
      folder: where they lie.
      tokens: of a view.
      width: of a token.
      dtype: of the features.
      shards: the features by name.
      digests: SHA-256 of every image file.
    """

    folder: Path
    tokens: int
    width: int
    dtype: np.dtype
    shards: Shards
    digests: Mapping[str, str]

    def read(self, images: Sequence[str], kept: Sequence[int]) -> np.ndarray:
        """Features `[len(kept) * tokens, width]` of some views of an image set, not copied."""
        return self.shards[feature_name([self.digests[images[view]] for view in kept])]


def made_from(config, weights: str | None) -> dict[str, object]:
    """Everything but the images that features depend on.

    Args:
      config: the configuration.
      weights: what VGGT's weights are; None where that is not asked.
    """
    vision = {f"model.vision.{k}": v for k, v in config.model.vision.items() if k != "weights"}
    framing = {f"data.{name}": config.data[name] for name in ("image_size", "resize", "jpeg_draft")}
    framing["data.image_height"] = config.data.image_height or config.data.image_size
    dtype = {"data.features.dtype": config.data.features.dtype}
    known = {} if weights is None else {"the weights of VGGT": weights}
    return {**framing, "precision": config.precision, **dtype, **vision, **known}


def feature_name(digests: Sequence[str]) -> str:
    """The name of the features of some images."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def begin_cache(folder: Path, made: Mapping[str, object], tokens: int, width: int) -> None:
    """Says in a new folder what its features will be made from; checks it in an old one.

    Raises:
      UserError: the folder holds features that were made from something else.
    """
    if (folder / _ABOUT).exists():
        _about(folder, made)
        return
    about = {"format": FORMAT, "made_from": dict(made), "tokens": tokens, "width": width}
    write_text(folder / _ABOUT, json.dumps(about, indent=2) + "\n")


def open_cache(
    folder: Path, made: Mapping[str, object], subsets: Mapping[tuple[str, ...], Iterable], digests
) -> FeatureCache:
    """Opens a cache that holds certain features.

    Args:
      folder: of the cache.
      made: what the features must have been made from.
      subsets: of each image set (its image files) the subsets of views that are needed.
      digests: SHA-256 of these images.

    Raises:
      UserError: there is no cache, it was made from something else, it lacks some of the features
        (an image has changed, or the cache is half written), or a shard is damaged.
    """
    about = _about(folder, made)
    shards = Shards(folder)
    lacking = [
        images
        for images, kept in subsets.items()
        if any(feature_name([digests[images[v]] for v in views]) not in shards for views in kept)
    ]
    if lacking:
        raise UserError(_lack(folder, lacking, len(subsets), digests))
    dtype = DTYPES[made["data.features.dtype"]]
    return FeatureCache(folder, about["tokens"], about["width"], dtype, shards, digests)


def _about(folder: Path, made: Mapping[str, object]) -> dict:
    """What stands in `cache.json`, where it is as it must be."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        before = dict(about["made_from"])
        sizes = about["format"], int(about["tokens"]), int(about["width"])
    except FileNotFoundError:
        raise UserError(
            f"data.features.folder={str(folder)!r} holds no feature cache; make it: {_AGAIN}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / _ABOUT} is damaged ({error}); delete the folder and run {_AGAIN}"
        ) from None
    if sizes[0] != FORMAT:
        raise UserError(
            f"{folder} is a feature cache of format {sizes[0]!r}, expected {FORMAT}; delete it and "
            f"run {_AGAIN}"
        )
    for name, value in json.loads(json.dumps(made)).items():
        if before.get(name) != value:
            raise UserError(
                f"the feature cache {folder} is stale: it was made with {name}="
                f"{before.get(name)!r}, now it is {value!r}; give data.features.folder another "
                f"folder and run {_AGAIN}"
            )
    return about


def _lack(
    folder: Path, lacking: Sequence[tuple[str, ...]], count: int, digests: Mapping[str, str]
) -> str:
    known = _known_images(folder)
    changed = [
        image
        for images in lacking
        for image in images
        if image in known and known[image][1] != digests[image]
    ]
    reason = (
        f"the image {changed[0]!r} has changed since they were made"
        if changed
        else f"that of {lacking[0][0]!r}, for one (is it half written, or has the data grown?)"
    )
    return (
        f"the feature cache {folder} lacks {len(lacking):,} of {count:,} image sets: {reason}. Run "
        f"{_AGAIN}, which adds what is missing"
    )


def image_digests(folder: Path, images: Iterable[str]) -> dict[str, str]:
    """SHA-256 of image files; of those that are as the cache knows them, without reading them.

    Raises:
      UserError: an image that cannot be read.
    """
    known = _known_images(folder)

    def digest(image: str) -> str:
        if image in known and known[image][0] == _stamp(image):
            return known[image][1]
        try:
            with Path(image).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"the image {image!r} cannot be read: {error.strerror}") from None

    images = list(dict.fromkeys(images))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(images, pool.map(digest, images), strict=True))


def note_images(folder: Path, digests: Mapping[str, str]) -> None:
    """Notes the images of a cache, so that the next start need not read them."""
    noted = {image: [_stamp(image), digest] for image, digest in digests.items()}
    known = {image: list(entry) for image, entry in _known_images(folder).items()}
    write_text(folder / _IMAGES, json.dumps({**known, **noted}) + "\n")


def _known_images(folder: Path) -> dict[str, tuple[list, str]]:
    """Stamp and SHA-256 of each noted image; nothing where the file is missing or damaged."""
    try:
        noted = json.loads((folder / _IMAGES).read_text(encoding="utf-8"))
        return {image: (entry[0], str(entry[1])) for image, entry in noted.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def _stamp(image: str) -> list | None:
    found = stamp(image)
    return found and list(found)
