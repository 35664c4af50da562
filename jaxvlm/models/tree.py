"""Between a module and its parameters as a nested dict of arrays."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def pure(module: nnx.Module) -> dict:
    """The parameters of `module` (arrays or `ShapeDtypeStruct`s) as a nested dict."""
    return nnx.to_pure_dict(nnx.state(module))


def in_float32(module: Module) -> Module:
    """The module with parameters of float32, for what must be computed so whatever they are."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), module)


def load(module: Module, tree: Mapping) -> Module:
    """A module built like `module` (which may be abstract) that holds the arrays of `tree`.

    Raises:
      ValueError: a path of `tree` is not in the module, or the other way round.
    """
    structure, state = nnx.split(module)
    wanted, given = (set(nnx.traversals.flatten_mapping(t)) for t in (pure(module), tree))
    if wanted != given:
        paths = sorted("/".join(map(str, path)) for path in wanted ^ given)
        raise ValueError(f"the tree and the module differ in {len(paths)} paths, first {paths[0]}")
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(structure, state)
