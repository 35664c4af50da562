"""A run on disk: its checkpoints, its configuration, and what it was trained beside."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.errors import UserError
from jaxvlm.training.checkpoints import best_in, read_meta, steps_in
from jaxvlm.training.parameters import Group
from jaxvlm.training.setup import frozen_identity


def find_checkpoint(path: Path) -> Path:
    """The update's folder that `--checkpoint` means: a workdir's, or the folder itself.

    Of a workdir it is the best by validation or, without any, the newest.

    Raises:
      UserError: there is no checkpoint.
    """
    path = path.resolve()
    if (path / "params").is_dir():
        return path
    folder = path / "checkpoints"
    best = best_in(folder)
    if best is not None:
        return folder / str(best)
    complete = [step for step in steps_in(folder) if (folder / str(step) / "params").is_dir()]
    if not complete:
        raise UserError(
            f"--checkpoint {path} holds no checkpoint; give the --workdir of a run, or one of its "
            "checkpoints/<update> folders"
        )
    return folder / str(max(complete))


def run_config(folder: Path, overrides: list[str]) -> ConfigDict:
    """The configuration of the run that an update's folder lies in, with `overrides`, checked.

    Raises:
      UserError: the folder lies in no run, or a field has an impossible value.
    """
    stored = folder.parent.parent / "config.json"
    if not stored.is_file():
        raise UserError(f"--checkpoint {folder} lies in no run: {stored} does not exist")
    config = load(str(stored), overrides)
    check(config)
    return config


def check_frozen(folder: Path, config: ConfigDict, groups: dict[str, Group]) -> None:
    """Raises a UserError if an update was trained beside other frozen weights than `config`'s."""
    if frozen_identity(config, groups) != read_meta(folder)["frozen"]:
        raise UserError(
            f"the frozen weights differ from those {folder} was trained with; check the field "
            "'weights' of each part of the model"
        )
