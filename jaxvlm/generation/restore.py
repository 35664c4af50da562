"""A generator from a trained run: configuration, parameters, tokenizer and sequence layout."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from jaxvlm.data.readers import ImageReader
from jaxvlm.data.rows import VisualLayout
from jaxvlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxvlm.data.training_set import image_reader, visual_layout
from jaxvlm.generation.decode import Generator
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.run import run_parameters
from jaxvlm.training.setup import compute_dtype


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
    dtype = compute_dtype(config)
    params = {p: v.astype(dtype) for p, v in run_parameters(folder, config, mesh).items()}
    tokenizer, layout = load_tokenizer(config.text.tokenizer), visual_layout(config)
    generator = Generator(model, params, tokenizer, layout, config.evaluation.max_new_tokens)
    return Answerer(config, folder, generator, tokenizer, layout, image_reader(config))
