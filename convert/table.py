"""The weight-name table: one list of rules a model, read in both directions.

A rule pairs a PyTorch key with a path of our parameter tree and an invertible change of layout.
`{i}` in the key is a layer number: the layers' tensors are stacked on a new first axis.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import ml_dtypes
import numpy as np

from jaxvlm.errors import UserError
from jaxvlm.paths import flatten, unflatten

# Problems that get the nearest name as a hint; looking for it takes a while.
_HINTS = 20


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

    def moved(self, key: str, path: str) -> "Rule":
        """The rule with `key` and `path` before its own."""
        return dataclasses.replace(self, key=key + self.key, path=path + self.path)

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


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter of ours and the PyTorch tensors it is made of.

    Attributes:
      path: of ours.
      keys: of PyTorch, in the order of the layers of a stack.
      rule: that joins them.
      shape: of ours.
      dtype: of ours.
    """

    path: str
    keys: list[str]
    rule: Rule
    shape: tuple[int, ...]
    dtype: np.dtype

    def fill(
        self,
        tensors: Mapping[str, np.ndarray],
        out: np.ndarray,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Reads the tensors, one at a time, into `out [*shape]`; `advance` is told the bytes.

        `out` holds zeros: a tensor with fewer rows fills a corner of it.
        """
        for index, key in enumerate(self.keys):
            value = tensors[key]
            turned = self.rule.layout.to_jax(value)
            place = out[index] if self.rule.stacked else out
            place[tuple(slice(size) for size in turned.shape)] = turned
            advance(value.nbytes)


class Head(Protocol):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def match(
    rules: Iterable[Rule],
    tensors: Mapping[str, Head],
    shapes: Mapping,
    ignore: Iterable[str] = (),
    dtype: np.dtype | None = None,
    padded: Mapping[str, int] | None = None,
) -> list[Leaf]:
    """Pairs every tensor with every parameter, reading none.

    Args:
      rules: the model's name table.
      tensors: PyTorch keys with shapes and dtypes.
      shapes: our parameter tree of arrays or `ShapeDtypeStruct`s (nested dict).
      ignore: regular expressions of PyTorch keys that have no counterpart on purpose.
      dtype: of all parameters; None keeps the source's.
      padded: PyTorch keys that get rows of zeros, up to this number.

    Raises:
      UserError: with every tensor that is missing, has no place or two, has a wrong shape, or a
        dtype that cannot be kept.
    """
    wanted = flatten(shapes)
    by_path: dict[str, list[Rule]] = {}
    for rule in rules:
        by_path.setdefault(rule.path, []).append(rule)
    skipped = re.compile("|".join(f"(?:{p})" for p in ignore) or r"(?!)")
    sizes = {key: tuple(head.shape) for key, head in tensors.items()}
    for key, rows in (padded or {}).items():
        sizes[key] = (max(rows, sizes[key][0]), *sizes[key][1:])
    problems: list[str] = []
    leaves: list[Leaf] = []
    uses: dict[str, list[str]] = {}
    free = [key for key in tensors if not skipped.fullmatch(key)]
    for path, leaf in wanted.items():
        found = by_path.get(path, [])
        if len(found) != 1:
            problems.append(f"{len(found)} rules of the name table fill the parameter {path!r}")
            continue
        keys = found[0].keys(leaf.shape[0] if found[0].stacked else 1)
        for key in keys:
            uses.setdefault(key, []).append(path)
        missing = [key for key in keys if key not in tensors]
        problems += [
            f"missing: {key!r} (for {path!r}){_nearest(key, free, problems)}" for key in missing
        ]
        if missing:
            continue
        expected = tuple(leaf.shape[1:] if found[0].stacked else leaf.shape)
        wrong = [k for k in keys if _turned(found[0], sizes[k]) != expected]
        problems += [
            f"wrong shape: {key!r} has {list(tensors[key].shape)}, which makes "
            f"{list(_turned(found[0], sizes[key]) or ())} of {path!r}; expected "
            f"{list(expected)}"
            for key in wrong
        ]
        kinds = {np.dtype(tensors[key].dtype) for key in keys}
        problem = _dtype_problem(kinds, dtype)
        if problem:
            problems.append(f"dtype: {keys[0]!r} {problem}")
        elif not wrong:
            leaves.append(Leaf(path, keys, found[0], tuple(leaf.shape), dtype or kinds.pop()))
    problems += [
        f"two places: {key!r} fills {' and '.join(map(repr, paths))}"
        for key, paths in uses.items()
        if len(paths) > 1
    ]
    extra = sorted(key for key in free if key not in uses)
    problems += [f"no place: {key!r}{_nearest(key, uses, problems)}" for key in extra]
    if problems:
        raise UserError(
            f"{len(problems)} tensors do not fit the model:\n  " + "\n  ".join(problems)
        )
    return leaves


def to_jax(
    rules: Iterable[Rule],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping,
    ignore: Iterable[str] = (),
) -> dict:
    """Our parameter tree from PyTorch tensors, in their own dtypes.

    Args and errors are those of `match`; `tensors` are numpy arrays.
    """
    filled = {}
    for leaf in match(rules, tensors, shapes, ignore):
        filled[leaf.path] = np.zeros(leaf.shape, leaf.dtype)
        leaf.fill(tensors, filled[leaf.path])
    return unflatten(filled)


def _turned(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape after the rule's change of layout; None where it does not apply."""
    try:
        return rule.layout.to_jax(np.broadcast_to(np.zeros(()), shape)).shape
    except ValueError:
        return None


def _dtype_problem(kinds: set[np.dtype], dtype: np.dtype | None) -> str:
    floats = {np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)}
    strange = sorted(str(kind) for kind in kinds - floats)
    if strange:
        return f"is {strange[0]}; expected float32, float16 or bfloat16"
    if dtype is None and len(kinds) > 1:
        names = " and ".join(sorted(map(str, kinds)))
        return f"and the other layers are {names}, of which one stack cannot be: choose --dtype"
    return ""


def _nearest(key: str, keys: Iterable[str], problems: list[str]) -> str:
    """A hint; none when so much is wrong that names would not help."""
    if len(problems) > _HINTS:
        return ""
    close = difflib.get_close_matches(key, list(keys), 1, 0.8)
    return f"; nearest is {close[0]!r}" if close else ""


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
