"""The weight-name table: one list of rules a model, read in both directions.

A rule pairs a PyTorch key with a path of our parameter tree and an invertible change of layout.
`{i}` in the key is a layer number: the layers' tensors are stacked on a new first axis.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jaxvlm.errors import UserError
from jaxvlm.paths import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Layout:
    """An invertible change of axis order between PyTorch and this package."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
# Linear: [out, in] <-> [in, out].
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
# Conv2d: [out, in, h, w] <-> [h, w, in, out].
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# ConvTranspose2d: [in, out, h, w] <-> [h, w, in, out].
CONV_TRANSPOSE = Layout(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))


@dataclasses.dataclass(frozen=True)
class Rule:
    """`key` of PyTorch (with `{i}` for a layer number) <-> `path` of ours, joined by `/`."""

    key: str
    path: str
    layout: Layout = SAME

    @property
    def stacked(self) -> bool:
        """Whether the rule gathers the layers of a stack."""
        return "{i}" in self.key

    def keys(self, layers: int) -> list[str]:
        """The PyTorch keys of this rule for a stack of `layers` layers."""
        if not self.stacked:
            return [self.key]
        return [self.key.replace("{i}", str(i)) for i in range(layers)]


def linear(key: str, path: str, bias: bool = True) -> list[Rule]:
    """Rules of an `nn.Linear` named `key` and our `nnx.Linear` at `path`."""
    rules = [Rule(f"{key}.weight", f"{path}/kernel", LINEAR)]
    return rules + [Rule(f"{key}.bias", f"{path}/bias")] * bias


def norm(key: str, path: str) -> list[Rule]:
    """Rules of an `nn.LayerNorm` named `key` and our `nnx.LayerNorm` at `path`."""
    return [Rule(f"{key}.weight", f"{path}/scale"), Rule(f"{key}.bias", f"{path}/bias")]


def to_jax(
    rules: Iterable[Rule],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping,
    ignore: Iterable[str] = (),
) -> dict:
    """Fills our parameter tree from PyTorch tensors; every tensor and every leaf is used once.

    Args:
      rules: the model's name table.
      tensors: PyTorch state dict as numpy arrays.
      shapes: our parameter tree of arrays or `ShapeDtypeStruct`s (nested dict).
      ignore: regular expressions of PyTorch keys that have no counterpart on purpose.

    Returns:
      A nested dict like `shapes` with numpy arrays in the tensors' own dtype.

    Raises:
      UserError: a tensor no rule names, a leaf no tensor fills, or a wrong shape.
    """
    wanted = flatten(shapes)
    by_path = {rule.path: rule for rule in rules}
    filled: dict[str, object] = {}
    used: set[str] = set()
    for path, leaf in wanted.items():
        if path not in by_path:
            raise UserError(f"no rule of the name table fills the parameter {path!r}")
        rule = by_path[path]
        keys = rule.keys(leaf.shape[0])
        missing = [key for key in keys if key not in tensors]
        if missing:
            raise UserError(f"the tensor {missing[0]!r} (for {path!r}) is missing from the source")
        parts = [np.asarray(rule.layout.to_jax(np.asarray(tensors[key]))) for key in keys]
        value = np.stack(parts) if rule.stacked else parts[0]
        if value.shape != tuple(leaf.shape):
            raise UserError(
                f"{keys[0]!r} gives {path!r} the shape {value.shape}, expected {tuple(leaf.shape)}"
            )
        filled[path] = value
        used.update(keys)
    skipped = re.compile("|".join(f"(?:{p})" for p in ignore) or r"(?!)")
    extra = sorted(key for key in tensors if key not in used and not skipped.fullmatch(key))
    if extra:
        raise UserError(f"{len(extra)} tensors of the source have no place, first {extra[0]!r}")
    return unflatten(filled)


def to_torch(rules: Iterable[Rule], tree: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `to_jax`: PyTorch keys and layouts from our parameter tree.

    Raises:
      UserError: a leaf of the tree that no rule names.
    """
    by_path = {rule.path: rule for rule in rules}
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in flatten(tree).items():
        if path not in by_path:
            raise UserError(f"no rule of the name table exports the parameter {path!r}")
        rule = by_path[path]
        parts = list(np.asarray(leaf)) if rule.stacked else [np.asarray(leaf)]
        for key, part in zip(rule.keys(len(parts)), parts, strict=True):
            tensors[key] = np.ascontiguousarray(rule.layout.to_torch(part))
    return tensors
