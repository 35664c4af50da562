"""Fills a feature cache: VGGT sees every image set of the training split once."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvlm.console import duration, progress, say
from jaxvlm.data.features.cache import (
    check_folder,
    describe_cache,
    feature_name,
    filled_for,
    label_of,
    made_from,
)
from jaxvlm.data.features.images import KnownImage, known_images, note_images, stamp_of
from jaxvlm.data.features.shards import (
    DTYPES,
    DamagedShard,
    Shards,
    draft_files,
    read_header,
    shard_files,
    write_shard,
)
from jaxvlm.data.features.subsets import cached_subsets
from jaxvlm.data.framing import Framing
from jaxvlm.data.images import load_image
from jaxvlm.data.record import Record, scene_of
from jaxvlm.data.sources import load_sources
from jaxvlm.data.training_set import framing, held_out_scenes
from jaxvlm.errors import UserError
from jaxvlm.models import attention
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import VLMConfig, abstract_vlm, features_of, vlm_config
from jaxvlm.paths import unflatten
from jaxvlm.shares import WHOLE, Share
from jaxvlm.training.frozen import vision_identity
from jaxvlm.training.mesh import batch_sharding, make_mesh
from jaxvlm.training.missing import check_weights
from jaxvlm.training.parameters import assign_groups
from jaxvlm.training.setup import all_parameters
from jaxvlm.training.state import Params, abstract_parameters
from jaxvlm.workdir import open_workdir

_FIELD = "data.features.folder"
# A shard is collected in memory before it is written, but not for long: a killed process loses it.
_SHARD_BYTES = 512 * 2**20
_SHARD_SECONDS = 60
# What a file system needs besides the features.
_SPARE = 1.02
_READERS = 16

Wanted = dict[str, tuple[str, ...]]


def cache_features(
    config, batch_sets: int, share: Share = WHOLE, files: Sequence[str] = ()
) -> None:
    """Writes what is missing in the cache `data.features.folder`; stopped, it goes on there.

    Args:
      config: the configuration that will be trained.
      batch_sets: image sets a device encodes at a time.
      share: of the subsets, which are encoded; other processes may do the others meanwhile.
      files: records whose image sets are wanted whole, instead of what training shows.

    Raises:
      UserError: anything wrong with what the user gave, or a disk too small, before the first set.
    """
    attention.choice()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    place = open_workdir(config.data.features.folder, _FIELD, shared=not share.whole)
    with place as folder, jax.set_mesh(mesh):
        check_weights(config.model, {"vision"})
        model = vlm_config(config.model)
        shapes = abstract_parameters(model)
        groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
        weights = vision_identity(config, groups, set())
        frame = framing(config)
        tokens = model.vision.tokens_per_view(frame.height, frame.width)
        width = 2 * model.vision.embed_dim
        made = made_from(config, weights)
        check_folder(folder, made)
        wanted, known = _wanted(config, folder, files)
        missing = _missing(folder, wanted, label_of(made), share)
        dtype = DTYPES[config.data.features.dtype]
        size = tokens * width * dtype.itemsize
        _check_space(folder, wanted, missing, size)
        describe_cache(folder, made, filled_for(config.data), (tokens, width))
        if missing:
            others = frozenset(path for path in shapes if not path.startswith("vision/"))
            params = all_parameters(config, model, groups, mesh, skip=others)
            encoder = Encoder(model, params, mesh, dtype)
            writer = _Writer(folder, label_of(made), share)
            images = _Images(missing, known, frame, batch_sets * jax.device_count())
            _fill(images, encoder, writer)
        note_images(folder, known)
    if share.whole:
        say(f"{folder} holds all {len(wanted):,} subsets")
    else:
        held = Shards(folder, label_of(made))
        count = sum(name in held for name in wanted)
        say(f"{folder} holds shard {share}, and {count:,} of all {len(wanted):,} subsets")


def _wanted(config, folder: Path, files: Sequence[str]) -> tuple[Wanted, dict[str, KnownImage]]:
    """The images of every subset by its name; and what every image is."""
    data = config.data
    records = _records([{"path": path} for path in files] or data.train, data)
    held_out = held_out_scenes({scene_of(record) for record in records}, data)
    keep_first: dict[tuple[str, ...], bool] = {}
    trained, validated = set(), set()
    for record in records:
        is_action = record.action is not None
        keep_first[record.images] = keep_first.get(record.images, False) or is_action
        whole = files or scene_of(record) in held_out
        (validated if whole else trained).add(record.images)
    if config.train.eval_every and data.val and not files:
        for record in _records(data.val, data):
            keep_first.setdefault(record.images, False)
            validated.add(record.images)
    print(f"hashing {sum(map(len, keep_first)):,} images", flush=True)
    known = known_images(folder, (image for images in keep_first for image in images))
    digests = {image: entry.digest for image, entry in known.items()}
    wanted: Wanted = {}
    for images, first in keep_first.items():
        subsets = cached_subsets(data, images, first, digests) if images in trained else []
        if images in validated:
            # Validation and evaluation show all views.
            subsets.append(tuple(range(min(len(images), data.num_views))))
        for views in subsets:
            shown = tuple(images[view] for view in views)
            wanted[feature_name([digests[image] for image in shown])] = shown
    say(
        f"{len(keep_first):,} image sets, {len(wanted):,} different subsets of their views "
        f"({sum(map(len, wanted.values())):,} views)"
    )
    return wanted, known


def _records(specs: Sequence, data) -> list[Record]:
    sources = load_sources(specs, data.image_roots, data.on_bad_record)
    return [record for source in sources for record in source.records]


def _missing(folder: Path, wanted: Wanted, label: str, share: Share) -> Wanted:
    """What of a share no whole shard holds; damaged ones are removed."""
    for path in shard_files(folder):
        try:
            read_header(path, label)
        except DamagedShard as error:
            print(f"removed: {str(error).partition(';')[0]}")
            path.unlink(missing_ok=True)
    for number, draft in draft_files(folder):
        if share.owns(number):
            draft.unlink(missing_ok=True)
    held = Shards(folder, label)
    others = len(held.places.keys() - wanted.keys())
    if others:
        say(f"{folder} also holds {others:,} subsets that this configuration does not use")
    return {name: wanted[name] for name in share.of(sorted(wanted)) if name not in held}


def _check_space(folder: Path, wanted: Wanted, missing: Wanted, size: int) -> None:
    """Says how large the cache is and what is to do; raises a UserError where it does not fit."""
    whole, rest = (size * sum(map(len, part.values())) for part in (wanted, missing))
    free = shutil.disk_usage(folder).free
    say(
        f"size {_bytes(whole)}, of which {_bytes(whole - rest)} stand in {folder} and "
        f"{_bytes(rest)} are to write ({_bytes(free)} are free)"
    )
    if rest * _SPARE > free:
        raise UserError(
            f"{folder} has {_bytes(free)} free, {_bytes(rest)} are needed: choose another "
            f"{_FIELD}, or fewer data.features.variants"
        )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


class Encoder:
    """VGGT on the devices; compiled anew for every number of views."""

    def __init__(self, model: VLMConfig, params: Params, mesh: Mesh, dtype: np.dtype):
        """Compiles nothing yet.

        Args:
          model: sizes.
          params: VGGT's. They are emptied, so that no layer is held twice for long.
          mesh: devices.
          dtype: that of the features.
        """
        self.vision = model.vision
        vision = load(abstract_vlm(model).vision, unflatten(params)["vision"])
        params.clear()
        if mesh.devices.flat[0].platform == "cpu":
            vision.aggregator.cut_layers()
        self._vision = vision
        self._sharding = batch_sharding(mesh)
        self._encode = jax.jit(
            lambda vision, images: features_of(vision, images, None).astype(dtype)
        )

    def __call__(self, images: np.ndarray) -> jax.Array:
        """Features `[N, C, F]` of images `uint8[N, V, H, W, 3]`, as soon as they are ready."""
        return self._encode(self._vision, jax.device_put(images, self._sharding))


class _Writer:
    """Collects features to shards."""

    def __init__(self, folder: Path, label: str, share: Share):
        self._folder = folder
        self._label = label
        self._share = share
        self._tensors: dict[str, np.ndarray] = {}
        self._bytes = 0
        self._written = time.monotonic()

    def add(self, name: str, features: np.ndarray) -> None:
        """Takes the features `[C, F]` of a subset; writes what is held, if that is much or old."""
        self._tensors[name] = features
        self._bytes += features.nbytes
        if self._bytes >= _SHARD_BYTES or time.monotonic() - self._written > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        if self._tensors:
            write_shard(self._folder, self._tensors, self._label, self._share)
        self._tensors, self._bytes, self._written = {}, 0, time.monotonic()


class _Images:
    """The images of missing subsets in batches of equal numbers of views, the largest first."""

    def __init__(
        self,
        missing: Wanted,
        known: Mapping[str, KnownImage],
        frame: Framing,
        batch_size: int,
    ):
        self.frame = frame
        self.count = len(missing)
        self._missing = missing
        self._known = known
        self._size = batch_size
        by_views: dict[int, list[str]] = {}
        for name, images in missing.items():
            by_views.setdefault(len(images), []).append(name)
        self.views = sorted(by_views, reverse=True)
        self.batches = [
            (by_views[views][start : start + batch_size], views)
            for views in self.views
            for start in range(0, len(by_views[views]), batch_size)
        ]

    def read(self, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        """Images `uint8[N, V, H, W, 3]` of each batch, the next one being read meanwhile.

        Raises:
          UserError: an image that cannot be read, or has changed since the command began.
        """
        started = self._start(pool, 0)
        for number, (names, _) in enumerate(self.batches):
            running = started
            started = self._start(pool, number + 1) if number + 1 < len(self.batches) else []
            images = np.stack([[one.result() for one in row] for row in running])
            for image in {image for name in names for image in self._missing[name]}:
                if stamp_of(image) != self._known[image].stamp:
                    raise UserError(
                        f"the image {image!r} changed while features were made; run the same "
                        "command again"
                    )
            # The last batch of a number of views is filled up: nothing is compiled for a rest.
            yield np.pad(images, [(0, self._size - len(images))] + [(0, 0)] * 4)

    def _start(self, pool: ThreadPoolExecutor, number: int) -> list:
        names, _ = self.batches[number]
        return [
            [pool.submit(load_image, image, self.frame) for image in self._missing[name]]
            for name in names
        ]


def _fill(images: _Images, encoder: Encoder, writer: _Writer) -> None:
    """Encodes and writes the missing subsets; what was fetched when it stops is written too."""
    estimate = _Estimate(encoder.vision, images.frame, images.batches)
    with ThreadPoolExecutor(_READERS) as pool, contextlib.ExitStack() as at_the_end:
        read = images.read(pool)
        first = next(read)
        say(f"compiling VGGT for {images.views[0]} views")
        features = encoder(first)
        jax.block_until_ready(features)
        estimate.time(lambda: jax.block_until_ready(encoder(first)))
        say(
            f"about {duration(estimate.seconds)} (h:mm:ss) to encode, besides compiling for "
            f"{', '.join(map(str, images.views))} views; the same command goes on if it is stopped"
        )
        at_the_end.callback(writer.flush)
        with progress("caching features", images.count) as advance:
            for names, _ in images.batches:
                # The devices compute the next batch while this one is fetched and written.
                following = next(read, None)
                ahead = None if following is None else encoder(following)
                for name, one in zip(names, jax.device_get(features), strict=False):
                    writer.add(name, one)
                advance(len(names))
                features = ahead


class _Estimate:
    """How long the encoding will take, from one batch and the operations of all."""

    def __init__(self, vision, frame: Framing, batches: Sequence[tuple[Sequence[str], int]]):
        work = [sum(vision.flops(views, frame.height, frame.width)) for _, views in batches]
        self._share = sum(work) / work[0]
        self.seconds = 0.0

    def time(self, encode_first) -> None:
        """Times the first batch, compiled before."""
        started = time.perf_counter()
        encode_first()
        self.seconds = (time.perf_counter() - started) * self._share
