"""What decoding is given of image sets: encoded many at a time, each once.

Axes: N image sets, M visual vectors a set, D width.
"""

import dataclasses
import functools
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
# What a set is seen by: its images, or what VGGT has made of them before; how much of that is real;
# and what goes with it.
_INPUTS = {
    "encode": ("images", "view_counts", "geometry"),
    "project": ("features", "feature_counts", "view_counts", "geometry"),
}


def encoder(
    model: VLMConfig, params: Mapping[str, Array], mesh: Mesh
) -> Callable[[Mapping[str, np.ndarray]], Float[np.ndarray, "N M D"]]:
    """The function from image sets, as a reader makes them, to their visual vectors.

    Args:
      model: sizes.
      params: all parts but the language model, whole on every device.
      mesh: devices, among which the sets are shared out; N is a multiple of their number.

    Returns:
      The function. Views that none of its sets has cost nothing; it is compiled for every number
      of views, of those that the largest of its sets has.
    """
    abstract = abstract_vlm(dataclasses.replace(model, language=None))

    split = NamedSharding(mesh, _ROWS)

    @functools.cache
    def compiled(way: str):
        def seen(params, *inputs):
            return getattr(load(abstract, unflatten(params)), way)(*inputs)

        specs = (PartitionSpec(), *[_ROWS] * len(_INPUTS[way]))
        return jax.jit(
            jax.shard_map(seen, mesh=mesh, in_specs=specs, out_specs=_ROWS, check_vma=False)
        )

    def encoded(sets):
        way = "project" if "features" in sets else "encode"
        large, count = _INPUTS[way][:2]
        most = max(int(sets[count].max()), 1)
        sets = sets | {large: sets[large][:, :most]}
        inputs = jax.device_put([sets[name] for name in _INPUTS[way]], split)
        return jax.device_get(compiled(way)(params, *inputs))

    return encoded
