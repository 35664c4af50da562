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
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvlm.data.features.images import noted_images
from jaxvlm.data.features.shards import DTYPES, Shards, shard_files
from jaxvlm.errors import UserError
from jaxvlm.files import write_text

FORMAT = 1
_ABOUT = "cache.json"
_WEIGHTS = "the weights of VGGT"
_AGAIN = "python -m jaxvlm.cache_features with the same --config and --config.… fields"


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
    known = {} if weights is None else {_WEIGHTS: weights}
    return {**framing, "precision": config.precision, **dtype, **vision, **known}


def feature_name(digests: Sequence[str]) -> str:
    """The name of the features of some images."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def label_of(made: Mapping[str, object]) -> str:
    """A name for what features were made from, which every shard bears."""
    return hashlib.blake2b(json.dumps(sorted(made.items())).encode(), digest_size=16).hexdigest()


def filled_for(data) -> dict[str, object]:
    """The fields that decide which subsets of views a cache holds."""
    return {
        "data.num_views": data.num_views,
        "data.view_dropout": data.view_dropout,
        "data.features.variants": data.features.variants,
    }


def check_folder(folder: Path, made: Mapping[str, object]) -> None:
    """Raises a UserError where features cannot be added to a folder.

    That is one that holds features made from something else, or things that are no features.
    """
    if (folder / _ABOUT).exists():
        if any(shard_files(folder)):
            _about(folder, made)
        return
    strange = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    if strange:
        raise UserError(
            f"data.features.folder={str(folder)!r} holds {strange[0]!r}, and no feature cache; "
            "give a folder of its own"
        )


def describe_cache(folder: Path, made: Mapping[str, object], asked, sizes: tuple[int, int]) -> None:
    """Writes what a folder's features are made from, and what for.

    Args:
      folder: of the cache.
      made: of `made_from`.
      asked: of `filled_for`.
      sizes: tokens of a view, and their width.

    Raises:
      UserError: it cannot be written.
    """
    tokens, width = sizes
    about = {"format": FORMAT, "made_from": dict(made), "tokens": tokens, "width": width}
    about["filled_for"] = dict(asked)
    try:
        write_text(folder / _ABOUT, json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder / _ABOUT} cannot be written: {error.strerror}") from None


def open_cache(
    folder: Path,
    made: Mapping[str, object],
    asked: Mapping[str, object],
    subsets: Mapping[tuple[str, ...], Collection[Sequence[int]]],
    digests: Mapping[str, str],
) -> FeatureCache:
    """Opens a cache that holds certain features.

    Args:
      folder: of the cache.
      made: what the features must have been made from.
      asked: of `filled_for`.
      subsets: of each image set (its image files) the subsets of views that are needed.
      digests: SHA-256 of these images.

    Raises:
      UserError: there is no cache, it was made from something else, it lacks some of the features
        (an image has changed, or the cache is half written), or a shard is damaged.
    """
    about = _about(folder, made)
    tokens, width = about["tokens"], about["width"]
    dtype = DTYPES[made["data.features.dtype"]]
    shards = Shards(folder, label_of(about["made_from"]))
    lacking = []
    for images, kept in subsets.items():
        for views in kept:
            place = shards.places.get(feature_name([digests[images[view]] for view in views]))
            if place is None:
                lacking.append(images)
                break
            if place.shape != (len(views) * tokens, width) or place.dtype != dtype:
                raise UserError(
                    f"{place.file} holds features {list(place.shape)} of dtype {place.dtype} for "
                    f"{len(views)} views, expected {[len(views) * tokens, width]} of {dtype}; "
                    f"delete {folder} and run {_AGAIN}"
                )
    if lacking:
        raise UserError(_lack(folder, lacking, len(subsets), digests, asked))
    return FeatureCache(folder, tokens, width, dtype, shards, digests)


def _about(folder: Path, made: Mapping[str, object]) -> dict:
    """What stands in `cache.json`, where it is as it must be."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        before = dict(about["made_from"])
        found, dict_of = about["format"], dict(about.get("filled_for", {}))
        about = {**about, "tokens": int(about["tokens"]), "width": int(about["width"])}
        about["filled_for"] = dict_of
    except FileNotFoundError:
        raise UserError(
            f"data.features.folder={str(folder)!r} holds no feature cache; make it: {_AGAIN}"
        ) from None
    except OSError as error:
        raise UserError(
            f"data.features.folder: {folder / _ABOUT} cannot be read: {error.strerror}"
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{folder / _ABOUT} is damaged ({str(error)[:100]}); give data.features.folder another "
            f"folder and run {_AGAIN}"
        ) from None
    if found != FORMAT:
        raise UserError(
            f"{folder} is a feature cache of format {found!r}, expected {FORMAT}; give "
            f"data.features.folder another folder and run {_AGAIN}"
        )
    for name, value in json.loads(json.dumps(made)).items():
        if before.get(name) != value:
            # Where a field alone is another one, its value of then makes the cache usable.
            field = name in before and name != _WEIGHTS
            use = f"--config.{name}={before[name]} to use it, or " if field else ""
            raise UserError(
                f"the feature cache {folder} is stale: it was made with {name}="
                f"{before.get(name)!r}, now it is {value!r}; give "
                f"{use}data.features.folder another folder and run {_AGAIN}"
            )
    return about


def _lack(
    folder: Path,
    lacking: Sequence[tuple[str, ...]],
    count: int,
    digests: Mapping[str, str],
    asked: Mapping[str, object],
) -> str:
    known = noted_images(folder)
    changed = [
        image
        for images in lacking
        for image in images
        if image in known and known[image].digest != digests[image]
    ]
    before = json.loads((folder / _ABOUT).read_text(encoding="utf-8")).get("filled_for", {})
    other = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        reason = f"the image {changed[0]!r} has changed since they were made"
    elif other:
        name = other[0]
        reason = f"it was filled for {name}={before.get(name)!r}, now it is {asked[name]!r}"
    else:
        reason = f"that of {lacking[0][0]!r}, for one (is it half written, or has the data grown?)"
    return (
        f"the feature cache {folder} lacks {len(lacking):,} of {count:,} image sets: {reason}. Run "
        f"{_AGAIN}, which adds what is missing"
    )
