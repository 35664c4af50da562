"""The training data that a configuration asks for: random access to packed rows, all checked."""

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxvlm.console import say
from jaxvlm.data.augment import Augment
from jaxvlm.data.features.cache import filled_for, made_from, open_cache
from jaxvlm.data.features.images import known_images
from jaxvlm.data.features.subsets import cached_subsets
from jaxvlm.data.framing import Framing
from jaxvlm.data.packing import Capacity, Group
from jaxvlm.data.plan import VERSION, Plan
from jaxvlm.data.readers import FeatureReader, ImageReader, SetReader
from jaxvlm.data.record import Record
from jaxvlm.data.rows import RowBuilder, VisualLayout
from jaxvlm.data.sequence import Sample, tokenize
from jaxvlm.data.sources import Joined, Source, load_sources
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.data.views import ListedViews, RandomViews, Views, say_cut_views
from jaxvlm.errors import UserError

# Rows that are not packed are padded to multiples of these, so that few shapes are compiled.
_TOKEN_BUCKET, _LABEL_BUCKET = 64, 16
# Places for views beyond the mean, in standard deviations of how many a row's sets are left: with
# fewer, rows are emptier; with more, VGGT sees more that is not there.
_SPARE_VIEWS = 1.4


@dataclasses.dataclass(frozen=True)
class Usage:
    """What of an epoch's rows is no padding.

    Attributes:
      rows: of the epoch.
      samples: in them.
      tokens: share of the tokens that are real.
      sets: share of the places for image sets that are taken.
      views: share of the places for views that are taken.
    """

    rows: int
    samples: int
    tokens: float
    sets: float
    views: float


@dataclasses.dataclass(frozen=True)
class Rows:
    """Random access to the first `count` rows of a plan.

    Attributes:
      plan: which samples a row has.
      builder: makes the arrays.
      count: rows of the whole run.
      fingerprint: tells the rows of one run from another's.
      packed: rows have the capacity's length; others that of the longest in their batch.
    """

    plan: Plan
    builder: RowBuilder
    count: int
    fingerprint: list[str]
    packed: bool = True

    def __len__(self) -> int:
        return self.count

    def batch(self, first: int, last: int, mine: slice = slice(None)) -> dict[str, np.ndarray]:
        """Some rows of the global batch of rows `first:last`, as arrays; see `RowBuilder.batch`."""
        rows = [self.plan.row(index) for index in range(first, last)]
        tokens, labels = (None, None) if self.packed else self._lengths(rows)
        return self.builder.batch(rows[mine], tokens, labels)

    def usage(self) -> "Usage":
        """How full the rows of the first epoch are."""
        count = self.plan.rows_in_epoch(0)
        groups = [group for row in range(count) for group in self.plan.row(row)]
        capacity = self.builder.capacity
        return Usage(
            rows=count,
            samples=sum(len(group.samples) for group in groups),
            tokens=sum(self.plan.size(group)[0] for group in groups) / (count * capacity.tokens),
            sets=len(groups) / (count * capacity.sets),
            views=sum(len(group.views) for group in groups) / (count * capacity.views),
        )

    def _lengths(self, rows: Sequence[Sequence[Group]]) -> tuple[int, int]:
        """Tokens and labels of a batch that is not packed, the same on every process."""
        sizes = [[self.plan.size(group) for group in row] for row in rows]
        longest = (max(sum(size[axis] for size in row) for row in sizes) for axis in (0, 1))
        capacity = self.builder.capacity
        buckets = zip(longest, (_TOKEN_BUCKET, _LABEL_BUCKET), strict=True)
        tokens, labels = (-(-most // bucket) * bucket for most, bucket in buckets)
        return min(tokens, capacity.tokens), min(labels, capacity.labels)


def visual_layout(config) -> VisualLayout:
    """The layout of a set's visual vectors that a configuration asks for."""
    mode = config.model.geometry.mode
    slots = {
        "per_view": config.data.num_views,
        "pooled": config.model.geometry.num_tokens,
        "none": 0,
    }
    return VisualLayout(mode, slots[mode], config.model.projector.num_latents)


def framing(config) -> Framing:
    """The frame that a configuration brings images into."""
    data = config.data
    return Framing(
        data.image_height or data.image_size,
        data.image_size,
        data.resize,
        config.model.vision.patch_size,
        data.jpeg_draft,
    )


def image_reader(config) -> ImageReader:
    """The reader of images that a configuration asks for, without random changes."""
    return ImageReader(**_reading(config))


def feature_reader(
    config, image_sets: Collection[tuple[str, ...]], vision: str | None
) -> FeatureReader:
    """The reader of what a cache holds of all views of some image sets.

    Args:
      config: the configuration.
      image_sets: their image files.
      vision: what VGGT's weights are.

    Raises:
      UserError: see `open_cache`.
    """
    folder = Path(config.data.features.folder)
    known = known_images(folder, (path for images in image_sets for path in images))
    digests = {path: image.digest for path, image in known.items()}
    subsets = {
        images: [tuple(range(min(len(images), config.data.num_views)))] for images in image_sets
    }
    cache = open_cache(folder, made_from(config, vision), filled_for(config.data), subsets, digests)
    return FeatureReader(**_reading(config), cache=cache)


def _reading(config) -> dict:
    """What every reader of a configuration's image sets knows."""
    data = config.data
    return {
        "framing": framing(config),
        "views": data.num_views,
        "blind": data.blind,
        "convention": data.geometry_convention,
    }


@dataclasses.dataclass(frozen=True)
class _Tokenized:
    """What the files of a split say; each sample has an answer."""

    sources: Sequence[Source]
    records: Joined
    samples: list[Sample]


def run_rows(config, count: int, vision: str | None = None) -> tuple[Rows, Rows | None]:
    """The rows that a run trains on, and those of its validation, everything checked.

    Args:
      config: the configuration.
      count: rows of the whole run.
      vision: what VGGT's weights are: a feature cache must be of the same. None asks nothing.

    Returns:
      `count` packed rows of the training split; and one epoch of validation, or None without it.

    Raises:
      UserError: whatever is wrong with the records, images, tokenizer, sizes or feature cache.
    """
    data = config.data
    read = _tokenized(config, data.train)
    rows = _training_rows(config, read, count, vision)
    if not config.train.eval_every:
        return rows, None
    return rows, _validation_rows(
        config, _tokenized(config, data.val) if data.val else read, vision
    )


def training_rows(config, count: int, vision: str | None = None) -> Rows:
    """The training split alone; see `run_rows`."""
    return _training_rows(config, _tokenized(config, config.data.train), count, vision)


def _training_rows(config, read: _Tokenized, count: int, vision: str | None) -> Rows:
    data = config.data
    sources, records, samples = read.sources, read.records, read.samples
    held_out = held_out_scenes({sample.scene for sample in samples}, data)
    fingerprint = [f"plan {VERSION}", *(source.fingerprint for source in sources)]
    if data.features.folder is None:
        first = {sample.set_id for sample in samples if sample.is_action}
        views = RandomViews(most=data.num_views, dropout=data.view_dropout, keep_first=first)
        reader = ImageReader(**_reading(config), augment=Augment(**data.augment))
    else:
        trained = [sample for sample in samples if sample.scene not in held_out]
        views, reader = _cached(config, trained, records, vision)
        # Views are drawn otherwise than without a cache, from subsets that the images decide.
        drawn = hashlib.sha256(repr(sorted(views.subsets.items())).encode())
        fingerprint.append(f"cached, views {drawn.hexdigest()}")
    if held_out:
        digest = hashlib.sha256(repr(sorted(held_out)).encode("utf-8", "surrogateescape"))
        fingerprint.append(f"held out {digest.hexdigest()}")
    ends = np.cumsum([0] + [len(source.records) for source in sources])
    weighted = []
    for source, first, last in zip(sources, ends[:-1], ends[1:], strict=True):
        kept = [i for i in range(first, last) if samples[i].scene not in held_out]
        if not kept:
            raise UserError(f"data.held_out={data.held_out} leaves nothing of {source.path}")
        weighted.append((source.weight, kept))
    if len(sources) > 1:
        total = sum(source.weight for source in sources)
        for source in sources:
            say(
                f"{source.path}: {source.weight / total:.1%} of the samples, from "
                f"{len(source.records):,} records"
            )
    plan, builder = _laid_out(config, read, samples, weighted, views, reader)
    places = builder.capacity.views
    if places < builder.capacity.sets * data.num_views:
        fingerprint.append(f"{places} places for views")
    return Rows(plan, builder, count, fingerprint, data.pack)


def _validation_rows(config, read: _Tokenized, vision: str | None) -> Rows:
    """`train.eval_samples` samples that are not trained on, as rows of one epoch, all views shown.

    They are of `data.val`, or of the scenes that `data.held_out` holds back from `data.train`; the
    same ones in every run of the same seed.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    data.view_dropout, data.row_views = 0.0, 0
    records, samples = read.records, read.samples
    if not data.val:
        scenes = held_out_scenes({sample.scene for sample in samples}, data)
        samples = [sample for sample in samples if sample.scene in scenes]
    if not samples:
        raise UserError(
            "train.eval_every asks for validation, but nothing is held out: name data.val, or "
            f"raise data.held_out={data.held_out}, the share of the training scenes; or set "
            "train.eval_every=0"
        )
    order = np.random.default_rng(config.seed).permutation(len(samples))
    samples = [samples[i] for i in sorted(order[: config.train.eval_samples])]
    if data.features.folder is None:
        views: Views = RandomViews(most=data.num_views)
        reader = ImageReader(**_reading(config))
    else:
        views, reader = _cached(config, samples, records, vision)
    weighted = [(1.0, range(len(samples)))]
    plan, builder = _laid_out(config, read, samples, weighted, views, reader)
    return Rows(plan, builder, plan.rows_in_epoch(0), [], data.pack)


def held_out_scenes(scenes: Iterable[str], data) -> set[str]:
    """The scenes of `data.train` that are never trained on: `data.held_out` of them, by their name.

    Several sources may be of the same scenes. Where `data.val` is given nothing is held out.
    """
    if data.val:
        return set()

    def place(scene: str) -> float:
        """From 0 to 1, and always the same."""
        digest = hashlib.blake2b(scene.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    return {scene for scene in scenes if place(scene) < data.held_out}


def _tokenized(config, specs: Sequence) -> _Tokenized:
    """The records of all sources and their samples; each must have an answer."""
    sources = load_sources(specs, config.data.image_roots, config.data.on_bad_record)
    records = Joined([source.records for source in sources])
    most_visual = len(visual_layout(config).index(config.data.num_views, True))
    tokenizer = load_tokenizer(config.text.tokenizer)
    samples, shortened = tokenize(
        records, tokenizer, config.text.template, config.text.max_length, most_visual
    )
    for sample in samples:
        if not len(sample.answer):
            raise UserError(f"{records[sample.record].origin}: a training record needs an 'answer'")
    say_cut_views([sample.views for sample in samples], config.data.num_views)
    if shortened:
        say(
            f"warning: {shortened:,} of {len(samples):,} questions and instructions lost their "
            f"end, for text.max_length={config.text.max_length}; what is asked for may stand "
            "there, so raise it",
            warns=True,
        )
    return _Tokenized(sources, records, samples)


def _laid_out(
    config,
    read: _Tokenized,
    samples: Sequence[Sample],
    weighted: Sequence[tuple[float, Sequence[int]]],
    views: Views,
    reader: SetReader,
) -> tuple[Plan, RowBuilder]:
    """Which samples stand in which row, and what makes arrays of them."""
    data, layout = config.data, visual_layout(config)
    tokenizer = load_tokenizer(config.text.tokenizer)
    capacity = row_capacity(data)
    plan = Plan(
        samples,
        weighted,
        capacity,
        lambda shown, known: len(layout.index(shown, known and not data.blind)),
        views,
        config.seed,
    )
    lengths = [len(source.records) for source in read.sources]
    builder = RowBuilder(
        read.records,
        samples,
        capacity,
        layout,
        reader,
        tokenizer.placeholder_id,
        tokenizer.pad_id,
        np.repeat(np.arange(len(lengths)), lengths),
        data.on_bad_record == "skip",
        tokenizer.digits,
        config.loss.finer_digits,
        config.loss.answers,
        boxes=config.model.action.ffn_dim > 0,
    )
    return plan, builder


def row_capacity(data) -> Capacity:
    """What fits into a row, as a `data` section says."""
    if not data.pack:
        return Capacity(data.row_length, 1, data.num_views, data.row_labels, 1)
    return Capacity(
        data.row_length, data.row_sets, _places(data), data.row_labels, data.questions_per_set
    )


def _places(data) -> int:
    """Places for views a row: as many as its sets can have, or as `data.view_dropout` leaves them.

    Cached features of views that are not there cost nothing, so of these rows hold any number.
    """
    most = data.row_sets * data.num_views
    if data.features.folder is not None:
        return most
    mean = most * (1 - data.view_dropout)
    usual = math.ceil(mean + _SPARE_VIEWS * math.sqrt(mean * data.view_dropout))
    return min(most, data.row_views or max(usual, data.num_views))


def _cached(
    config, samples: Sequence[Sample], records: Sequence[Record], vision: str | None
) -> tuple[ListedViews, FeatureReader]:
    """The views that a feature cache holds, and its reader."""
    folder, images = Path(config.data.features.folder), {}
    for sample in samples:
        if sample.set_id not in images:
            images[sample.set_id] = records[sample.record].images
    known = known_images(folder, (path for shown in images.values() for path in shown))
    digests = {path: image.digest for path, image in known.items()}
    # By images, not by set: with other geometry they are another set, but the same features.
    first = {images[sample.set_id] for sample in samples if sample.is_action}
    subsets = {
        shown: cached_subsets(config.data, shown, shown in first, digests)
        for shown in images.values()
    }
    asked = filled_for(config.data)
    cache = open_cache(folder, made_from(config, vision), asked, subsets, digests)
    by_set = {set_id: subsets[shown] for set_id, shown in images.items()}
    views = ListedViews(most=config.data.num_views, subsets=by_set)
    return views, FeatureReader(**_reading(config), cache=cache)
