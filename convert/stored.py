"""Parameters on our side of the disk, read one at a time: imported weights or a checkpoint."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from convert import parts
from convert.source import Entry
from convert.store import HUGGING_FACE
from jaxvlm.errors import UserError, first_line
from jaxvlm.models.adapted import adapters_of, layers_of, merged, plain_path, run_paths
from jaxvlm.models.lora import is_adapter
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vlm import PARTS, vlm_config
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training import checkpoints, weights
from jaxvlm.training.frozen import check_frozen, kept_folder, kept_shapes
from jaxvlm.training.parameters import assign_groups
from jaxvlm.training.run import find_checkpoint, run_config
from jaxvlm.training.state import abstract_parameters


class Params(Mapping[str, np.ndarray]):
    """The parameters of one or more Orbax folders by path; each is read when it is asked for."""

    def __init__(self, entries: Mapping[str, Entry]):
        """Takes shape, dtype and folder of each path."""
        self.entries = dict(entries)

    def __getitem__(self, path: str) -> np.ndarray:
        return _read(path, self.entries[path].file)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class RunParams(Params):
    """The plain model's parameters of a run: adapters added, the layers of both stacks together."""

    def __init__(self, found: Mapping[str, Entry], language: Qwen3Config):
        """Takes where each of the run's parameters is, and the sizes of its language model."""
        self._found, self._language = found, language
        super().__init__({plain_path(p): self._entry(plain_path(p)) for p in found
                          if not is_adapter(p)})  # fmt: skip

    def __getitem__(self, path: str) -> np.ndarray:
        return merged(path, self._language, self._piece)

    def _piece(self, path: str) -> np.ndarray:
        """One of the run's parameters; weights that were imported hold the plain model's."""
        entry = self._found[path]
        layers = layers_of(path, self._language)
        if layers is not None and entry.shape[0] == self._language.num_layers:
            return self._finite(plain_path(path), entry.file)[layers]
        return self._finite(path, entry.file)

    def _finite(self, path: str, folder: Path) -> np.ndarray:
        found = _read(path, folder)
        checkpoints.check_finite(folder.parent, {path: bool(np.isfinite(found).all())})
        return found

    def _entry(self, path: str) -> Entry:
        last = run_paths(path, self._language)[-1]
        if last not in self._found:
            return next(self._found[p] for p in run_paths(path, self._language) if p in self._found)
        entry = self._found[last]
        stacked = layers_of(last, self._language) is not None
        shape = (self._language.num_layers, *entry.shape[1:]) if stacked else entry.shape
        adapted = adapters_of(last, self._language.lora) is not None
        return Entry(shape, np.dtype(np.float32) if adapted else entry.dtype, entry.file)


def _read(path: str, folder: Path) -> np.ndarray:
    """One parameter of an Orbax folder."""
    tree = unflatten({path: 0})
    wish = unflatten({path: ocp.RestoreArgs(restore_type=np.ndarray)})
    arguments = ocp.args.PyTreeRestore(item=tree, restore_args=wish, partial_restore=True)
    try:
        with ocp.PyTreeCheckpointer() as reader:
            return flatten(reader.restore(folder, args=arguments))[path]
    except (OSError, ValueError) as error:
        raise UserError(f"{path!r} in {folder} is damaged ({first_line(error)})") from error


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model on disk.

    Attributes:
      params: by path.
      parts: the sizes of the parts.
      source: where it came from.
      tokenizer: its name, if it was trained here.
      trained: the parts that were trained here, or came together in one import.
      weights: by part the imported weights it began with.
      begun_with: the run whose parameters it began with, if it did.
      absent: parts that are stored nowhere: they were frozen at random weights.
      placeless: parts that no format of PyTorch has a place for: the action head.
    """

    params: Params
    parts: dict[str, parts.Sizes]
    source: str
    tokenizer: str | None
    trained: tuple[str, ...]
    weights: dict[str, str]
    absent: tuple[str, ...] = ()
    begun_with: str | None = None
    placeless: tuple[str, ...] = ()

    def original_rows(self) -> int | None:
        """Rows of the token embedding in the original's checkpoint it began with, if in one."""
        meta = self._meta("language")
        return meta.get("rows") if meta.get("kind") == "original" else None

    def hugging_face(self) -> Path | None:
        """What the Hugging Face folder that the language model came from held beside weights."""
        folder = Path(self.weights.get("language", "")) / HUGGING_FACE
        return folder if "language" in self.weights and folder.is_dir() else None

    def origin(self, part: str) -> str:
        """Where the weights that a part began with came from."""
        if self.begun_with is not None and part in self.trained:
            return f"the run {self.begun_with}"
        return self._meta(part).get("source", "random weights")

    def _meta(self, part: str) -> dict[str, Any]:
        name = self.weights.get(part)
        return weights.read_meta(name) if name else {}


def open_stored(name: str, overrides: list[str]) -> Stored:
    """Opens imported weights, a run's best or newest checkpoint, or an update's folder.

    Args:
      name: a path, or the name of weights in the package.
      overrides: of the run's configuration.

    Raises:
      UserError: there is nothing of the kind, or it is not complete.
    """
    if weights.exist(name):
        if overrides:
            raise UserError(f"--config.{overrides[0]}: {name} is imported weights, not a run")
        return _open_weights(name)
    if not Path(name).exists():
        raise UserError(f"{name} does not exist")
    return _open_checkpoint(find_checkpoint(Path(name)), overrides)


def _open_weights(name: str) -> Stored:
    meta = weights.read_meta(name)
    found = parts.from_described(meta["model"], f"{name}/meta.json")
    entries = _weights_entries(name)
    wanted = _check_complete(entries, found, name)
    return Stored(
        Params({path: entries[path] for path in wanted}),
        found,
        name,
        None,
        tuple(found),
        dict.fromkeys(found, name),
    )


def _open_checkpoint(folder: Path, overrides: list[str]) -> Stored:
    config = run_config(folder, overrides)
    model = vlm_config(config.model)
    found = {part: sizes for part in PARTS if (sizes := getattr(model, part)) is not None}
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    check_frozen(folder, config, groups)
    own = _entries(checkpoints.stored_shapes(folder), folder / "params")
    workdir = folder.parent.parent
    kept = _entries(kept_shapes(workdir), kept_folder(workdir))
    needed = {path.split("/")[0] for path in set(shapes) - set(own) - set(kept)}
    # Of the others only the source is told, where it is known.
    names = {
        part: name
        for part in found
        if (name := config.model[part].weights) and (part in needed or weights.exist(name))
    }
    imported = {part: _weights_entries(names[part]) for part in needed & set(names)}
    entries, random = {}, set()
    for path in shapes:
        part = path.split("/")[0]
        if path in own or path in kept:
            entries[path] = own.get(path) or kept[path]
        elif plain_path(path) in imported.get(part, {}):
            entries[path] = imported[part][plain_path(path)]
        elif part in names:
            raise UserError(f"the weights at {names[part]!r} hold no parameter {path!r}")
        else:
            random.add(part)
    found = {part: sizes for part, sizes in found.items() if part not in random}
    changed = {path.split("/")[0] for path in (*own, *kept)}
    trained = tuple(part for part in found if part in changed)
    tokenizer = config.text.tokenizer
    if "language" in found:
        found["language"] = dataclasses.replace(model.language, lora=None, frozen_layers=0)
    stored = {path: entry for path, entry in entries.items() if path.split("/")[0] in found}
    params = RunParams(stored, model.language)
    _check_complete(params.entries, found, str(folder))
    return Stored(params, found, str(folder), tokenizer, trained, names,
                  tuple(sorted(random)), config.init_from,
                  tuple(sorted({path.split("/")[0] for path in shapes} - set(PARTS))))  # fmt: skip


def _weights_entries(name: str) -> dict[str, Entry]:
    return _entries(weights.stored_shapes(name), weights.params_folder(name))


def _entries(shapes: Mapping[str, Any], folder: Path) -> dict[str, Entry]:
    return {
        path: Entry(tuple(leaf.shape), np.dtype(leaf.dtype), folder.absolute())
        for path, leaf in shapes.items()
    }


def _check_complete(
    entries: Mapping[str, Entry], found: Mapping[str, parts.Sizes], name: str
) -> Iterable[str]:
    """The paths of the parts, all of which `entries` must have, in their shapes."""
    wanted = parts.shapes(found)
    missing = sorted(set(wanted) - set(entries))
    if missing:
        raise UserError(f"{name} holds no parameter {missing[0]!r} ({len(missing)} are missing)")
    for path, leaf in wanted.items():
        if entries[path].shape != tuple(leaf.shape):
            raise UserError(
                f"{name} holds {path!r} with shape {list(entries[path].shape)}, expected "
                f"{list(leaf.shape)}"
            )
    return wanted
