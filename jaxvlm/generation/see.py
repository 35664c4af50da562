"""What decoding is given of image sets: read ahead, encoded many at a time, each once.

Axes: N image sets, M visual vectors a set, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxvlm.models.partition import BATCH_AXES
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import VLMConfig, abstract_vlm
from jaxvlm.paths import unflatten

_ROWS = PartitionSpec(BATCH_AXES)
_INPUTS = ("images", "view_counts", "geometry")


def encoder(
    model: VLMConfig, params: Mapping[str, Array], mesh: Mesh
) -> Callable[[Mapping[str, np.ndarray]], Float[np.ndarray, "N M D"]]:
    """The function from image sets, as a reader makes them, to their visual vectors.

    Args:
      model: sizes.
      params: all parts but the language model, whole on every device.
      mesh: devices, among which the sets are shared out; N is a multiple of their number.
    """
    abstract = abstract_vlm(dataclasses.replace(model, language=None))

    def encode(params, images, view_counts, geometry):
        return load(abstract, unflatten(params)).encode(images, view_counts, geometry)

    mapped = jax.jit(
        jax.shard_map(
            encode,
            mesh=mesh,
            in_specs=(PartitionSpec(), *[_ROWS] * len(_INPUTS)),
            out_specs=_ROWS,
            check_vma=False,
        )
    )
    split = NamedSharding(mesh, _ROWS)

    def encoded(sets):
        return jax.device_get(mapped(params, *jax.device_put([sets[n] for n in _INPUTS], split)))

    return encoded
