"""What a configuration names but nobody has made yet, and the commands that do."""

from collections.abc import Collection, Mapping
from pathlib import Path

from jaxvlm.data.records import open_records
from jaxvlm.errors import UserError
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.state import abstract_parameters
from jaxvlm.training.weights import exist

# What `convert.import_torch` calls the weights of a part, and where they are published.
_PUBLISHED = {
    "vision": ("vggt", "facebook/VGGT-1B-Commercial"),
    "language": ("qwen3", "Qwen/Qwen3-4B-Instruct-2507"),
    "projector": ("original", "FOLDER_OF_THE_ORIGINALS_CHECKPOINT"),
    "geometry": ("original", "FOLDER_OF_THE_ORIGINALS_CHECKPOINT"),
}
_PYTORCH = (".pt", ".pth", ".bin", ".safetensors")


def check_named(config) -> None:
    """Checks that a run's weights and record files are there, before anything that takes long.

    Raises:
      UserError: the first that are not.
    """
    if config.init_from is None:
        shapes = abstract_parameters(vlm_config(config.model))
        check_weights(config.model, {path.partition("/")[0] for path in shapes})
    for spec in (*config.data.train, *(config.data.val if config.train.eval_every else ())):
        # Anything else that is wrong with a source is found when it is read.
        if isinstance(spec, Mapping) and isinstance(spec.get("path"), str):
            open_records(spec["path"])


def check_weights(model, parts: Collection[str]) -> None:
    """Checks that the weights which the `model` section of a configuration names were imported.

    Args:
      model: the section.
      parts: of the model, whose weights are needed.

    Raises:
      UserError: those that were not, with a command for each.
    """
    names = {part: model[part].weights for part in _PUBLISHED if part in parts}
    missing = {
        part: Path(name) for part, name in names.items() if name is not None and not exist(name)
    }
    if not missing:
        return
    commands = dict.fromkeys(_command(part, folder) for part, folder in missing.items())
    folders = " and ".join(
        f"{str(folder)!r} (model.{part}.weights)" for part, folder in missing.items()
    )
    raise UserError(
        f"no imported weights at {folders}; make them: {' && '.join(commands)} "
        "(docs/weights.md); or set the field to None for random weights, or to 'jaxvlm:rooms' for "
        "the small VGGT in the package"
    )


def _command(part: str, folder: Path) -> str:
    """The command that makes `folder`, from PyTorch files in or beside it if there are any."""
    kind, source = _PUBLISHED[part]
    dest = folder
    if _holds_pytorch(folder):
        # The field names PyTorch's own folder, which is left as it is.
        source, dest = folder, folder / "jaxvlm"
    elif _holds_pytorch(folder.parent) and folder.parent != Path():
        source = folder.parent
    command = f"python -m convert.import_torch {kind} {source} {dest}"
    if part == "vision":
        # Frozen, as a rule, and computed in bfloat16: half the room.
        command += " --dtype bfloat16"
    if dest == folder:
        return command
    return f"{command} (then model.{part}.weights={dest})"


def _holds_pytorch(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in _PYTORCH for path in folder.iterdir())
