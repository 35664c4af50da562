"""A generator from a trained run: configuration, parameters, tokenizer and sequence layout."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvlm.data.readers import ImageReader
from jaxvlm.data.rows import VisualLayout
from jaxvlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxvlm.data.training_set import image_reader, visual_layout
from jaxvlm.generation.decode import Generator
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.checkpoints import restore_params
from jaxvlm.training.mesh import make_mesh, shardings
from jaxvlm.training.parameters import FROZEN, assign_groups
from jaxvlm.training.run import check_frozen
from jaxvlm.training.setup import all_parameters, compute_dtype
from jaxvlm.training.state import abstract_parameters


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Everything needed to answer questions as the run was trained to."""

    config: object
    checkpoint: Path
    generator: Generator
    tokenizer: Tokenizer
    layout: VisualLayout
    reader: ImageReader


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
    placed = shardings(trained, mesh, trained)
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
    return Answerer(config, folder, generator, tokenizer, layout, image_reader(config))
