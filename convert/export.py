"""From our parameters to files of PyTorch: which tensor goes where, in which dtype."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from convert import parts, shards
from convert.source import Entry
from convert.stored import Stored
from convert.table import Rule


@dataclasses.dataclass(frozen=True)
class Export:
    """Parameters and the PyTorch tensors they become.

    Attributes:
      heads: shape and dtype of every tensor.
      rules: by path of the parameter.
      paths: the parameters.
    """

    heads: dict[str, Entry]
    rules: dict[str, Rule]
    paths: tuple[str, ...]


def plan(
    stored: Stored,
    which: Iterable[str],
    prefixes: Mapping[str, str],
    dtype: np.dtype | None,
    rows: int | None = None,
) -> Export:
    """Finds the tensors that parts of a model become.

    Args:
      stored: the model.
      which: parts of it.
      prefixes: before the keys of each part.
      dtype: of all tensors; None keeps each parameter's.
      rows: of token embedding and output layer that are kept; None keeps all.
    """
    chosen = {part: stored.parts[part] for part in which}
    table = {rule.path: rule for rule in parts.rules(chosen, prefixes)}
    heads: dict[str, Entry] = {}
    paths = tuple(parts.shapes(chosen))
    for path in paths:
        rule, entry = table[path], stored.params.entries[path]
        one = entry.shape[1:] if rule.stacked else entry.shape
        shape = rule.layout.to_torch(np.broadcast_to(np.zeros(()), one)).shape
        if rows is not None and path in parts.VOCABULARY:
            shape = (rows, *shape[1:])
        for key in rule.keys(entry.shape[0] if rule.stacked else 1):
            heads[key] = Entry(shape, dtype or entry.dtype, entry.file)
    return Export(heads, {path: table[path] for path in paths}, paths)


def fill(
    export: Export,
    stored: Stored,
    places: Mapping[str, np.ndarray],
    advance: Callable[[int], None],
) -> None:
    """Reads every parameter once and writes its tensors to their places."""
    for path in export.paths:
        rule, value = export.rules[path], stored.params[path]
        layers = list(value) if rule.stacked else [value]
        for key, layer in zip(rule.keys(len(layers)), layers, strict=True):
            place = places[key]
            place[...] = rule.layout.to_torch(layer)[: len(place)] if place.ndim else layer
            advance(place.nbytes)


def write_safetensors(
    file: Path, export: Export, stored: Stored, advance: Callable[[int], None]
) -> None:
    """Writes one file."""
    fill(export, stored, shards.lay_out(file, export.heads), advance)


def write_sharded(
    folder: Path,
    export: Export,
    stored: Stored,
    limit: int,
    advance: Callable[[int], None],
) -> None:
    """Writes `model-00001-of-0000n.safetensors` and their index."""
    split = shards.split(export.heads, limit)
    names = [f"model-{i:05}-of-{len(split):05}.safetensors" for i in range(1, len(split) + 1)]
    places: dict[str, np.ndarray] = {}
    for name, heads in zip(names, split, strict=True):
        places |= shards.lay_out(folder / name, heads)
    fill(export, stored, places, advance)
    # Also for a single shard: a loader that takes every *.safetensors would read projector and
    # geometry head as parts of the language model.
    index = folder / "model.safetensors.index.json"
    shards.write_index(index, zip(names, split, strict=True))


def write_bins(
    folder: Path,
    export: Export,
    stored: Stored,
    limit: int,
    advance: Callable[[int], None],
    shared: Mapping[str, str],
) -> None:
    """Writes `pytorch_model-00001-of-0000n.bin` and their index.

    `shared` gives second names to tensors. The tensors are collected in mapped files, from which
    torch writes: it can only write a shard as a whole.
    """
    split = shards.split(export.heads, limit)
    scratch = [folder / f"{i}.scratch" for i in range(len(split))]
    mapped = [shards.lay_out(file, heads) for file, heads in zip(scratch, split, strict=True)]
    fill(export, stored, {k: place for places in mapped for k, place in places.items()}, advance)
    names = [f"pytorch_model-{i:05}-of-{len(split):05}.bin" for i in range(1, len(split) + 1)]
    for name, file, places in zip(names, scratch, mapped, strict=True):
        shards.save_bin(folder / name, places, shared)
        places.clear()
        file.unlink()
    named = [
        (name, heads | {second: heads[first] for second, first in shared.items() if first in heads})
        for name, heads in zip(names, split, strict=True)
    ]
    shards.write_index(folder / "pytorch_model.bin.index.json", named)
