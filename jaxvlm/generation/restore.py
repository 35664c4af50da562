"""Everything that answers questions, from a run or from imported weights."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from jaxvlm.data.actions.constraint import ActionConstraints
from jaxvlm.data.readers import SetReader
from jaxvlm.data.rows import VisualLayout
from jaxvlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxvlm.data.training_set import feature_reader, image_reader, visual_layout
from jaxvlm.errors import UserError
from jaxvlm.generation.engine import Engine
from jaxvlm.generation.sampling import Sampling
from jaxvlm.generation.see import encoder
from jaxvlm.generation.slots import Program
from jaxvlm.models.adapted import merged
from jaxvlm.models.decoder import Decoder, decoder_weights
from jaxvlm.models.vlm import PARTS, VLMConfig, vlm_config
from jaxvlm.paths import unflatten
from jaxvlm.training.frozen import kept_shapes, vision_identity
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.missing import check_weights
from jaxvlm.training.parameters import assign_groups
from jaxvlm.training.run import run_parameters
from jaxvlm.training.setup import all_parameters, compute_dtype
from jaxvlm.training.state import abstract_parameters

_LANGUAGE, _ACTION = "language/", "action/"


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Answers questions as a run was trained to.

    Attributes:
      config: of the run.
      checkpoint: where the weights are from.
      engine: continues prompts.
      encode: from image sets to visual vectors, see `encoder`.
      devices: among which both are shared out.
      tokenizer: of the run.
      layout: of visual vectors.
      reader: of images, or of features.
      constraints: what actions may be made of.
    """

    config: ConfigDict
    checkpoint: Path | str
    engine: Engine
    encode: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    devices: int
    tokenizer: Tokenizer
    layout: VisualLayout
    reader: SetReader
    constraints: ActionConstraints


def restore_answerer(folder: Path, config: ConfigDict) -> Answerer:
    """Loads an update for answering.

    Args:
      folder: the update's, as `find_checkpoint` gives it.
      config: of `run_config`.

    Raises:
      UserError: sizes other than its own, or frozen weights other than those of the training.
    """
    # Whatever the mesh of its training was: here weights are whole on every device.
    mesh = make_mesh(-1, -1)
    model = vlm_config(config.model)
    return _answerer(config, model, folder, run_parameters(folder, config, mesh), mesh)


def imported_answerer(config: ConfigDict) -> Answerer:
    """Loads the imported weights that a configuration names, of all parts.

    Raises:
      UserError: a part has none, or they do not fit.
    """
    # An action head is a run's own.
    model = dataclasses.replace(vlm_config(config.model), action=None)
    shapes = abstract_parameters(model)
    lacking = [
        part
        for part in PARTS
        if config.model[part].weights is None
        and any(path.startswith(f"{part}/") for path in shapes)
    ]
    if lacking:
        raise UserError(
            f"without --checkpoint all weights are imported ones, but model.{lacking[0]}.weights "
            "is None; name them, or give a --checkpoint"
        )
    check_weights(config.model, PARTS)
    mesh = make_mesh(-1, -1)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    params = all_parameters(config, model, groups, mesh)
    return _answerer(config, model, "imported weights", params, mesh)


def with_features(answerer: Answerer, image_sets: Collection[tuple[str, ...]]) -> Answerer:
    """The same, reading the features of these image sets from `data.features.folder`.

    Raises:
      UserError: the folder lacks some, or was made from something else.
    """
    config, folder = answerer.config, answerer.checkpoint
    shapes = abstract_parameters(vlm_config(config.model))
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    kept = set(kept_shapes(folder.parent.parent)) if isinstance(folder, Path) else set()
    vision = vision_identity(config, groups, kept)
    reader = feature_reader(config, image_sets, vision)
    return dataclasses.replace(answerer, reader=reader)


def _answerer(config, model: VLMConfig, checkpoint, params: dict[str, Array], mesh) -> Answerer:
    tokenizer = load_tokenizer(config.text.tokenizer)
    language = dataclasses.replace(model.language, lora=None, frozen_layers=0)
    paths = abstract_parameters(dataclasses.replace(model, language=language))
    whole, dtype = NamedSharding(mesh, PartitionSpec()), compute_dtype(config)
    # One after the other, so that hardly anything is held twice.
    plain = {
        path: jax.device_put(merged(path, model.language, params.pop).astype(dtype), whole)
        for path in paths
    }
    spoken = {path for path in plain if path.startswith(_LANGUAGE)}
    weights = decoder_weights(
        {path.removeprefix(_LANGUAGE): plain.pop(path) for path in spoken}, language.num_layers
    )
    measuring = {p: plain.pop(p) for p in paths if p.startswith(_ACTION)}
    if model.action is not None:
        head = unflatten({p.removeprefix(_ACTION): leaf for p, leaf in measuring.items()})
        weights = weights._replace(action=head)
    constraints = ActionConstraints(tokenizer)
    program = Program(
        Decoder(language, model.action),
        Sampling(**config.evaluation.sampling),
        mesh,
        tokenizer.end_id,
        tokenizer.placeholder_id,
        tuple(constraints.plain_ids.tolist()),
        # As in exports: it ends Qwen's documents.
        (tokenizer.pad_id,),
    )
    engine = Engine(program, weights, config.evaluation.batch_questions)
    return Answerer(
        config,
        checkpoint,
        engine,
        encoder(dataclasses.replace(model, action=None), plain, mesh),
        mesh.size,
        tokenizer,
        visual_layout(config),
        image_reader(config),
        constraints,
    )
