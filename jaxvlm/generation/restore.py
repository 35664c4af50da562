"""A generator from a trained run: configuration, parameters, tokenizer and sequence layout."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.data.pipeline import set_reader, visual_layout
from jaxvlm.data.rows import SetReader, VisualLayout
from jaxvlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.generation.decode import Generator
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.checkpoints import read_meta, restore_params
from jaxvlm.training.mesh import make_mesh, shardings
from jaxvlm.training.parameters import FROZEN, Group, assign_groups
from jaxvlm.training.setup import all_parameters, compute_dtype, frozen_identity
from jaxvlm.training.state import abstract_parameters


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Everything needed to answer questions as the run was trained to."""

    config: object
    checkpoint: Path
    generator: Generator
    tokenizer: Tokenizer
    layout: VisualLayout
    reader: SetReader


def find_checkpoint(path: Path) -> Path:
    """The update's folder that `--checkpoint` means: a workdir's newest, or the folder itself.

    Raises:
      UserError: there is no checkpoint.
    """
    path = path.resolve()
    if (path / "params").is_dir():
        return path
    folder = path / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    complete = [step for step in steps if (folder / str(step) / "params").is_dir()]
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


def restore_answerer(folder: Path, config: ConfigDict) -> Answerer:
    """Loads an update for answering.

    Args:
      folder: the update's, as `find_checkpoint` gives it.
      config: of `run_config`.

    Raises:
      UserError: sizes other than its own, or frozen weights other than those of the training.
    """
    model = vlm_config(config.model)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    trained = {p: s for p, s in shapes.items() if groups[p].name != FROZEN}
    placed = shardings(trained, mesh)
    wanted = {
        p: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=placed[p])
        for p, s in trained.items()
    }
    check_frozen(folder, config, groups)
    frozen = all_parameters(config, model, groups, mesh, skip=frozenset(trained))
    dtype = compute_dtype(config)
    params = {p: v.astype(dtype) for p, v in restore_params(folder, wanted).items()}
    tokenizer, layout = load_tokenizer(config.text.tokenizer), visual_layout(config)
    generator = Generator(
        model, {**frozen, **params}, tokenizer, layout, config.evaluation.max_new_tokens
    )
    return Answerer(config, folder, generator, tokenizer, layout, set_reader(config))
