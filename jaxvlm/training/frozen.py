"""The frozen weights of a run: those that its configuration names, known by their content, and
those that it took from another run, which it keeps in its workdir.

<workdir>/frozen/params/     Orbax tree
<workdir>/frozen/meta.json   {"origin": what they were taken from}
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxvlm.errors import UserError, first_line
from jaxvlm.files import write_text
from jaxvlm.models.vlm import PARTS
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.checkpoints import KEPT, check_same_frozen, read_meta
from jaxvlm.training.parameters import Group, trainable
from jaxvlm.training.processes import is_first, wait_for_all
from jaxvlm.training.state import Params
from jaxvlm.training.weights import check_fits, content


def frozen_identity(
    config, groups: Mapping[str, Group], kept: set[str], origin: str | None
) -> dict[str, str]:
    """What the frozen weights of each part of the model are: the same again, or others.

    Weights are known by their content, random ones by the seed, and those that are `kept` in the
    workdir by their `origin`.
    """
    frozen = {path.split("/")[0] for path in set(groups) - trainable(groups) - kept}
    names = {part: config.model[part].weights for part in PARTS}
    found = {
        part: content(names[part]) if names.get(part) else f"random, {config.seed}"
        for part in sorted(frozen)
    }
    return found | ({KEPT: origin} if kept else {})


def vision_identity(config, groups: Mapping[str, Group], kept: set[str]) -> str:
    """What VGGT's weights are, whose features are to be cached.

    Raises:
      UserError: some of them learn, so that features would not stay true; or they are `kept` in the
        workdir, which the cache does not know.
    """
    field = f"data.features.folder={config.data.features.folder!r}"
    learning = sorted(path for path in trainable(groups) if path.startswith("vision/"))
    if learning:
        raise UserError(
            f"'parameters' lets {learning[0]!r} learn, but {field} holds what VGGT made of the "
            "images before; freeze 'vision/.*', or set data.features.folder=None"
        )
    if any(path.startswith("vision/") for path in kept):
        raise UserError(
            f"init_from is a run that trained VGGT, and {field} is made with "
            "model.vision.weights; set data.features.folder=None, or export that run and import "
            "its VGGT (docs/weights.md)"
        )
    return frozen_identity(config, groups, kept, None)["vision"]


def check_frozen(folder: Path, config, groups: Mapping[str, Group]) -> None:
    """Raises a UserError if an update was trained beside other frozen weights than are there."""
    workdir = folder.parent.parent
    check_kept(folder)
    found = frozen_identity(config, groups, set(kept_shapes(workdir)), kept_origin(workdir))
    check_same_frozen(read_meta(folder)["frozen"], found, workdir)


def check_kept(folder: Path) -> None:
    """Raises a UserError if what an update's run keeps is not there, or is another run's."""
    workdir, stored = folder.parent.parent, read_meta(folder)["frozen"]
    check_same_frozen(stored, {**stored, KEPT: kept_origin(workdir)}, workdir)


def keep(workdir: Path, params: Params, origin: str) -> None:
    """Writes frozen parameters that came from another run; what an earlier start wrote goes."""
    place = kept_folder(workdir)
    if is_first():
        shutil.rmtree(place.parent, ignore_errors=True)
    if not params:
        return
    wait_for_all("what an earlier start kept is gone")
    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(place, unflatten(params))
        # Last: where it stands, everything stands.
        if is_first():
            write_text(_meta(workdir), json.dumps({"origin": origin}) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the frozen parameters of init_from could not be written to {place}: "
            f"{first_line(error)}"
        ) from error


def kept_folder(workdir: Path) -> Path:
    """Where a run keeps frozen parameters that came from another; not every run has any."""
    return (workdir / KEPT / "params").absolute()


def _meta(workdir: Path) -> Path:
    return workdir / KEPT / "meta.json"


def kept_origin(workdir: Path) -> str | None:
    """What the parameters that `keep` wrote were taken from, or None where there are none."""
    try:
        return json.loads(_meta(workdir).read_text(encoding="utf-8"))["origin"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(_meta(workdir), error) from error


def kept_shapes(workdir: Path) -> dict[str, Any]:
    """Path of every parameter that `keep` wrote, with its `shape` and `dtype`."""
    place = kept_folder(workdir)
    if kept_origin(workdir) is None:
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
    place = kept_folder(workdir)
    if not wanted:
        return {}
    check_fits(f"{place} holds", kept_shapes(workdir), wanted)
    try:
        with ocp.StandardCheckpointer() as reader:
            return flatten(reader.restore(place, unflatten(wanted)))
    except Exception as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, error: Exception) -> UserError:
    return UserError(
        f"{place}, of the run's frozen parameters, is damaged ({type(error).__name__}: "
        f"{first_line(error)}); put back a copy of it, or train anew from init_from in another "
        "--workdir"
    )
