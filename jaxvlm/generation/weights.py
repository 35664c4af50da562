"""Which weights a user means: a run's, or imported ones."""

import contextlib
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.errors import UserError
from jaxvlm.files import cache_folder
from jaxvlm.generation.restore import (
    Answerer,
    imported_answerer,
    restore_answerer,
    with_features,
)
from jaxvlm.generation.sampling import Sampling
from jaxvlm.models.vlm import PARTS
from jaxvlm.paths import flatten
from jaxvlm.training.compilation import keep_compiled
from jaxvlm.training.run import find_checkpoint, run_config
from jaxvlm.training.weights import exist, read_meta

# What an answer depends on, besides the weights and the records.
_DECIDING = ("model/", "text/", "precision", "seed", "evaluation/max_new_tokens",
             "evaluation/sampling/", "evaluation/features",
             "evaluation/constrain_actions", "data/image_size", "data/image_height",
             "data/resize", "data/jpeg_draft", "data/num_views", "data/blind",
             "data/geometry_convention", "data/features/")  # fmt: skip
# With a configuration file beside a run, it says these; the rest is the run's.
_GIVEN = ("data", "evaluation", "precision")
# Where the original keeps whole weights, in its own order; then any file of these kinds.
_ORIGINAL = ("pytorch_model_fp32", "pytorch_model_fp32.bin")
_PYTORCH = (".bin", ".safetensors")
# Where an import beside them is looked for.
_IMPORTED = "jaxvlm"


class Chosen(NamedTuple):
    """Weights that answer.

    Attributes:
      config: what they are asked with.
      folder: the update of a run, or None for imported weights.
    """

    config: ConfigDict
    folder: Path | None

    @property
    def workdir(self) -> Path | None:
        """Of the run."""
        return self.folder and self.folder.parent.parent

    def identity(self) -> dict:
        """What answers depend on: the configuration and which weights these are."""
        weights = [self.config.model[part].weights for part in PARTS]
        return {
            "checkpoint": str(self.folder or "imported weights"),
            "written": (self.folder / "params").stat().st_mtime_ns if self.folder else None,
            "weights": [name and exist(name) and read_meta(name)["content"] for name in weights],
            "config": hashlib.sha256(repr(self._asked_with()).encode()).hexdigest(),
        }

    def _asked_with(self) -> list[tuple[str, object]]:
        """The fields that an answer depends on."""
        found = flatten(self.config.to_dict())
        return [
            (name, value)
            for name, value in sorted(found.items())
            if name.startswith(_DECIDING) and not name.endswith("/weights")
        ]

    def answerer(self, image_sets: Callable[[], Collection[tuple[str, ...]]]) -> Answerer:
        """Loads them.

        Args:
          image_sets: gives those that will be shown, for a cache of features.
        """
        # Imported weights have no run, and may be everybody's.
        place = self.workdir or cache_folder()
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
        keep_compiled(place)
        if self.folder is None:
            made = imported_answerer(self.config)
        else:
            made = restore_answerer(self.folder, self.config)
        return with_features(made, image_sets()) if self.config.evaluation.features else made


def choose(
    checkpoint: Path | None,
    config: str | None,
    overrides: list[str],
    asked_by: str = "--checkpoint",
) -> Chosen:
    """Finds weights, without reading them.

    Args:
      checkpoint: a run's workdir or update, or imported weights; None for those that the
        configuration names.
      config: a configuration file. For a run it takes the place of the run's own data and
        evaluation, and must be of the same model.
      overrides: of the configuration.
      asked_by: the flag of the checkpoint, for messages.

    Raises:
      UserError: no such weights, PyTorch's own, or a configuration of another model.
    """
    given = None
    if config is not None:
        given = load(config, overrides)
        _check(given)
    if checkpoint is None:
        return Chosen(given, None)
    imported = _imported(checkpoint, asked_by)
    if imported is not None:
        if given is None:
            raise UserError(f"{asked_by} {checkpoint} holds imported weights; give a --config too")
        given = given.copy_and_resolve_references()
        with given.ignore_type():
            for part in read_meta(str(imported))["model"]:
                given.model[part].weights = str(imported)
        return Chosen(given, None)
    folder = find_checkpoint(checkpoint, asked_by)
    mine = [o for o in overrides if given is None or not o.startswith(_GIVEN)]
    own = run_config(folder, mine, asked_by)
    if given is not None:
        _check_same_model(own, given, config, asked_by)
        with own.unlocked():
            for name in _GIVEN:
                own[name] = given[name]
    _check(own)
    return Chosen(own, folder)


def _check(config: ConfigDict) -> None:
    check(config)
    Sampling(**config.evaluation.sampling)


def _imported(folder: Path, asked_by: str) -> Path | None:
    """Imported weights in a folder, or beside PyTorch's in it; None if it has neither."""
    for place in (folder, folder / _IMPORTED):
        if exist(str(place)):
            return place
    found = _pytorch_in(folder)
    if found is not None:
        raise UserError(
            f"{asked_by} {folder} holds weights of PyTorch ({found}); import them once, and the "
            "same command reads the import: python -m convert.import_torch original "
            f"{folder} {folder / _IMPORTED}"
        )
    return None


def _pytorch_in(folder: Path) -> Path | None:
    """What the original would read of a folder."""
    for name in _ORIGINAL:
        if (folder / name).is_dir():
            return folder / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((path for path in files if path.suffix in _PYTORCH), None)


def _check_same_model(own: ConfigDict, given: ConfigDict, config: str, asked_by: str) -> None:
    for section in ("model", "text"):
        mine, theirs = flatten(own[section].to_dict()), flatten(given[section].to_dict())
        for name, value in mine.items():
            # Of a run these are what it began with.
            if theirs.get(name) != value and not name.endswith("weights"):
                field = f"{section}.{name.replace('/', '.')}"
                raise UserError(
                    f"--config {config}: {field} is {theirs.get(name)!r}, but the run of "
                    f"{asked_by} has {value!r}; leave --config out to take the run's own"
                )
