"""A run on disk: its checkpoints, its configuration, and what it was trained beside."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.console import say
from jaxvlm.errors import UserError
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.checkpoints import best_in, restore_params, steps_in
from jaxvlm.training.frozen import check_frozen, kept_shapes, restore_kept
from jaxvlm.training.parameters import assign_groups, trainable
from jaxvlm.training.setup import all_parameters, compute_dtype
from jaxvlm.training.state import Params, abstract_parameters, placed_parameters

_FLAG = "--checkpoint"


def find_checkpoint(path: Path, asked_by: str = _FLAG) -> Path:
    """The update's folder that a path means: a workdir's, or the folder itself.

    Of a workdir it is the best by validation or, without any, the newest.

    Args:
      path: what the user gave.
      asked_by: the flag or field, for messages.

    Raises:
      UserError: there is no checkpoint.
    """
    path = path.resolve()
    if path.parent.name == "checkpoints" and not path.is_dir():
        found = ", ".join(map(str, steps_in(path.parent))) or "no checkpoint at all"
        raise UserError(f"{asked_by} {path} does not exist; {path.parent} holds {found}")
    if (path / "params").is_dir():
        return path
    if path.is_file():
        raise UserError(f"{asked_by} {path} is a file; give the --workdir of a run")
    workdir = path.parent if path.name == "checkpoints" else path
    folder = workdir / "checkpoints"
    best = best_in(folder)
    steps = steps_in(folder)
    complete = [step for step in steps if (folder / str(step) / "params").is_dir()]
    if best is not None:
        if best not in complete:
            others = ", ".join(map(str, complete)) or "none is left"
            raise UserError(
                f"{asked_by} {path}: update {best}, the best by validation, is incomplete: it has "
                f"no 'params'; name another ({others})"
            )
        return folder / str(best)
    if not complete:
        if not path.exists():
            raise UserError(f"{asked_by} {path} does not exist; give the --workdir of a run")
        raise UserError(
            f"{asked_by} {path} holds no checkpoint; give the --workdir of a run, or one of its "
            "checkpoints/<update> folders"
        )
    newest = max(complete)
    if steps[-1] > newest:
        say(f"warning: update {steps[-1]} of {path} is incomplete; {newest} is taken", warns=True)
    return folder / str(newest)


def run_config(folder: Path, overrides: list[str], asked_by: str = _FLAG) -> ConfigDict:
    """The configuration of the run that an update's folder lies in, with `overrides`, checked.

    Args:
      folder: of `find_checkpoint`.
      overrides: `field.path=value`.
      asked_by: the flag or field, for messages.

    Raises:
      UserError: the folder lies in no run, or a field has an impossible value.
    """
    stored = folder.parent.parent / "config.json"
    if not stored.is_file():
        raise UserError(f"{asked_by} {folder} lies in no run: {stored} does not exist")
    config = load(str(stored), overrides)
    check(config)
    return config


def run_parameters(
    folder: Path, config: ConfigDict, mesh: Mesh, wanted: set[str] | None = None
) -> Params:
    """The parameters of an update: what it trained in float32, the rest in the compute dtype.

    Args:
      folder: the update's.
      config: of `run_config`.
      mesh: devices.
      wanted: paths, where not all are.

    Raises:
      UserError: sizes other than its own, or frozen weights other than those of the training.
    """
    model = vlm_config(config.model)
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    check_frozen(folder, config, groups)
    likes = placed_parameters(model, groups, compute_dtype(config), mesh)
    wanted = set(likes) if wanted is None else wanted
    learning, workdir = trainable(groups), folder.parent.parent
    params: Params = {}
    if wanted & learning:
        params |= restore_params(folder, {path: likes[path] for path in learning})
    kept = set(kept_shapes(workdir))
    if wanted & kept:
        params |= restore_kept(workdir, {path: likes[path] for path in kept})
    absent = set(likes) - (wanted - set(params))
    params |= all_parameters(config, model, groups, mesh, skip=frozenset(absent))
    # In the order of the model, which is the same in every process.
    return {path: params[path] for path in likes if path in wanted}
