"""The frozen weights of a run: those that its configuration names, known by their content, and
those that it took from another run, which it keeps in `frozen/` of its workdir.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxvlm.errors import UserError
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.checkpoints import read_meta
from jaxvlm.training.parameters import Group, trainable
from jaxvlm.training.processes import is_first
from jaxvlm.training.state import Params
from jaxvlm.training.weights import check_fits, content

# The parts of the model; the weights of each can be imported.
PARTS = ("vision", "projector", "geometry", "language")


def frozen_identity(
    config, groups: Mapping[str, Group], kept: Collection[str] = ()
) -> dict[str, str]:
    """What the frozen weights of each part of the model are: the same again, or others.

    Weights are known by their content, random ones by the seed; those that are `kept` in the run
    cannot become others.
    """
    frozen = {path.split("/")[0] for path in set(groups) - trainable(groups) - set(kept)}
    names = {part: config.model[part].weights for part in PARTS}
    return {
        part: content(names[part]) if names.get(part) else f"random, {config.seed}"
        for part in sorted(frozen)
    }


def vision_identity(config, groups: Mapping[str, Group], kept: Collection[str] = ()) -> str:
    """What VGGT's weights are, whose features are to be cached.

    Raises:
      UserError: some of them learn, so that features would not stay true; or they are `kept` in the
        run, where the cache cannot have them from.
    """
    learning = sorted(path for path in trainable(groups) if path.startswith("vision/"))
    if learning:
        raise UserError(
            f"'parameters' lets {learning[0]!r} learn, but data.features.folder="
            f"{config.data.features.folder!r} holds what VGGT made of the images before; freeze "
            "'vision/.*', or set data.features.folder=None"
        )
    if any(path.startswith("vision/") for path in kept):
        raise UserError(
            "init_from is a run that trained VGGT, and data.features.folder="
            f"{config.data.features.folder!r} is made with model.vision.weights; set "
            "data.features.folder=None, or export that run and import its VGGT (docs/weights.md)"
        )
    return frozen_identity(config, groups)["vision"]


def check_frozen(folder: Path, config, groups: Mapping[str, Group]) -> None:
    """Raises a UserError if an update was trained beside other frozen weights than `config`'s."""
    kept = kept_shapes(folder.parent.parent)
    if frozen_identity(config, groups, kept) != read_meta(folder)["frozen"]:
        raise UserError(
            f"the frozen weights differ from those {folder} was trained with; check the field "
            "'weights' of each part of the model"
        )


def keep(workdir: Path, params: Params) -> None:
    """Writes frozen parameters that came from another run; what an earlier start wrote goes."""
    place = kept_folder(workdir)
    if not params:
        if is_first():
            shutil.rmtree(place, ignore_errors=True)
        return
    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(place, unflatten(params), force=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the frozen parameters of init_from could not be written to {place}: "
            f"{_first_line(error)}"
        ) from error


def kept_folder(workdir: Path) -> Path:
    """Where a run keeps frozen parameters that came from another; not every run has any."""
    return (workdir / "frozen").absolute()


def kept_shapes(workdir: Path) -> dict[str, Any]:
    """Path of every parameter that `keep` wrote, with its `shape` and `dtype`."""
    place = kept_folder(workdir)
    if not place.is_dir():
        return {}
    try:
        return flatten(ocp.StandardCheckpointHandler().metadata(place).tree)
    except Exception as error:  # The storage library raises every kind.
        raise _damaged(place, error) from error


def restore_kept(workdir: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """What `keep` wrote, all of which must be `wanted`.

    Raises:
      UserError: it does not fit, or is damaged.
    """
    stored, place = kept_shapes(workdir), kept_folder(workdir)
    if not stored:
        return {}
    check_fits(f"{place} holds", stored, wanted)
    try:
        with ocp.StandardCheckpointer() as reader:
            return flatten(reader.restore(place, unflatten(wanted)))
    except Exception as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, error: Exception) -> UserError:
    return UserError(
        f"{place}, which holds the run's frozen parameters, is damaged "
        f"({type(error).__name__}: {_first_line(error)}); put back a copy of it, or train anew "
        "from init_from in another --workdir"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
