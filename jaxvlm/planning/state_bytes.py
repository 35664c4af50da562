"""Bytes that a device holds from update to update, and sends and receives, from shapes alone."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax

from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.mesh import parameter_spec
from jaxvlm.training.optimizer import moments
from jaxvlm.training.parameters import assign_groups, trainable
from jaxvlm.training.setup import compute_dtype
from jaxvlm.training.state import abstract_parameters

_MASTER = 4


class StateBytes(NamedTuple):
    """Bytes a device.

    Attributes:
      parameters: float32 masters of those that learn.
      frozen: the others, in the dtype of the computation.
      gradients: float32 sums.
      optimizer: AdamW's two float32 moments, or Muon's one, wherever they lie.
    """

    parameters: int
    frozen: int
    gradients: int
    optimizer: int


class Traffic(NamedTuple):
    """Bytes that a device receives for one micro-batch, by the axis that they travel along.

    Attributes:
      fsdp: parameters gathered forwards and backwards, gradients scattered.
      data: gradients summed among copies of the parameters.
    """

    fsdp: float
    data: float


def state_bytes(config, fsdp: int) -> StateBytes:
    """What a device of a mesh with so many shares holds.

    A parameter of n numbers that learns takes 4n/fsdp bytes each for its master, its gradient and
    its moments, or 4n where it is not split (`parameter_spec`).
    """
    leaves, learning, size = _leaves(config)
    held = {path: _held(path, leaf, fsdp, learning) for path, leaf in leaves.items()}
    learnt = sum(numbers for path, numbers in held.items() if path in learning)
    rest = sum(held.values()) - learnt
    kept = sum(moments(path, config.optimizer) * held[path] for path in learning)
    return StateBytes(_MASTER * learnt, size * rest, _MASTER * learnt, _MASTER * kept)


def traffic(config, data: int, fsdp: int) -> Traffic:
    """What a micro-batch moves, as rings do.

    Of a split parameter each device receives the (fsdp - 1)/fsdp that others hold, forwards and
    again backwards, and as much of gradients if it learns, all in the dtype of the computation.
    Gradients are then summed among the `data` copies of each share, twice (data - 1)/data of it.
    """
    leaves, learning, size = _leaves(config)
    along_fsdp = along_data = 0.0
    for path, leaf in leaves.items():
        held = _held(path, leaf, fsdp, learning)
        whole = held == leaf.size
        if not whole:
            times = 3 if path in learning else 2
            along_fsdp += times * size * leaf.size * (fsdp - 1) / fsdp
        if path in learning:
            # What is not split has a copy on every device.
            copies = data * fsdp if whole else data
            along_data += 2 * size * held * (copies - 1) / copies
    return Traffic(along_fsdp, along_data)


def _leaves(config) -> tuple[Mapping[str, jax.ShapeDtypeStruct], set[str], int]:
    shapes = abstract_parameters(vlm_config(config.model))
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    if config.data.features.folder is not None:
        shapes = {path: leaf for path, leaf in shapes.items() if not path.startswith("vision/")}
    return shapes, trainable(groups) & set(shapes), compute_dtype(config).dtype.itemsize


def _held(path: str, leaf: jax.ShapeDtypeStruct, fsdp: int, learning: set[str]) -> int:
    """Numbers of a parameter on one device."""
    split = "fsdp" in parameter_spec(path, leaf.shape, fsdp, path in learning)
    return leaf.size // fsdp if split else math.prod(leaf.shape)
