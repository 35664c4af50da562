"""What the compiled steps of a run take, as shapes: nothing is read and nothing allocated.

Axes of a batch: B rows, T tokens a row, S image sets a row, X views a row, V views a set, C context
tokens a set, L labels a row.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvlm.data.boxes import BOX
from jaxvlm.data.geometry import FEATURES
from jaxvlm.data.training_set import framing, row_capacity
from jaxvlm.models.vlm import VLMConfig, vlm_config
from jaxvlm.training.mesh import batch_sharding
from jaxvlm.training.optimizer import Optimizer, Params, make_optimizer
from jaxvlm.training.parameters import assign_groups, trainable
from jaxvlm.training.setup import compute_dtype
from jaxvlm.training.state import (
    TrainState,
    abstract_parameters,
    abstract_state,
    placed_parameters,
)


class Inputs(NamedTuple):
    """Abstract values, each with its sharding, and what they belong to.

    Attributes:
      model: sizes, without VGGT where its features are read from a cache.
      optimizer: of the trainable parameters.
      state: of a run.
      frozen: parameters.
      batch: a global micro-batch.
      key: of dropout.
    """

    model: VLMConfig
    optimizer: Optimizer
    state: TrainState
    frozen: Params
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct


def abstract_inputs(config, mesh: Mesh) -> Inputs:
    """What a run of a configuration would hold on the devices of a mesh.

    Raises:
      UserError: sizes or rules that cannot be.
    """
    model = vlm_config(config.model)
    groups = assign_groups(
        config.parameters, abstract_parameters(model), config.optimizer.learning_rate
    )
    likes = placed_parameters(model, groups, compute_dtype(config), mesh)
    if config.data.features.folder is not None:
        model = dataclasses.replace(model, vision=None)
        likes = {path: like for path, like in likes.items() if not path.startswith("vision/")}
    learning = trainable(groups)
    optimizer = make_optimizer(
        {path: groups[path] for path in likes if path in learning},
        config.optimizer,
        config.train.max_steps,
    )
    params = {path: like for path, like in likes.items() if path in learning}
    whole = NamedSharding(mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Inputs(
        model,
        optimizer,
        abstract_state(params, optimizer, mesh),
        {path: like for path, like in likes.items() if path not in learning},
        {
            name: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=batch_sharding(mesh))
            for name, like in batch_shapes(config, config.train.rows_per_device * mesh.size).items()
        },
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole),
    )


def batch_shapes(config, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a micro-batch of `rows` rows; unpacked ones at their longest."""
    data, limits = config.data, row_capacity(config.data)
    frame = framing(config)
    tokens = (
        limits.tokens if data.pack else min(limits.tokens, -(-config.text.max_length // 64) * 64)
    )
    text, labels = (rows, tokens), (rows, limits.labels)
    sets = (rows, limits.sets)
    shapes = {
        **dict.fromkeys(("tokens", "positions", "segment_ids", "visual_index"), (text, jnp.int32)),
        **dict.fromkeys(("label_positions", "labels", "label_sources"), (labels, jnp.int32)),
        "label_weights": (labels, jnp.float32),
        "view_counts": (sets, jnp.int32),
        "geometry": ((*sets, data.num_views, FEATURES), jnp.float32),
    }
    if config.model.action.ffn_dim:
        boxes = rows, limits.sets * limits.questions_per_set
        shapes |= {
            **dict.fromkeys(("action_positions", "action_sets"), (boxes, jnp.int32)),
            "action_targets": ((*boxes, BOX), jnp.float32),
            "action_weights": (boxes, jnp.float32),
        }
    if data.features.folder is None:
        pixels = (rows, limits.views, frame.height, frame.width, 3)
        shapes["images"] = (pixels, jnp.uint8)
    else:
        vision = vlm_config(config.model)
        context = data.num_views * vision.vision.tokens_per_view(frame.height, frame.width)
        features = (*sets, context, vision.projector.in_dim)
        shapes["features"] = (features, jnp.dtype(data.features.dtype))
        shapes["feature_counts"] = (sets, jnp.int32)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
