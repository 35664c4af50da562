"""Weights that both sides can make for themselves: every tensor from its name in PyTorch.

Neither side reads the other's, so that none holds a copy.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from convert.table import Rule
from jaxvlm.paths import flatten


def tensor(key: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor of PyTorch's name and layout, float32, of a size that keeps activations tame."""
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
    if len(shape) > 1:
        small = any(part in key for part in ("token", "pos_embed", "embed_tokens"))
        return drawn * np.float32(0.02 if small else math.prod(shape[1:]) ** -0.5)
    if key.endswith("bias"):
        return np.float32(0.02) * drawn
    # The scale of a norm, or of a residual branch.
    return (1 + np.float32(0.1) * drawn) * np.float32(0.1 if key.endswith("gamma") else 1)


def ours(rules: Sequence[Rule], shapes: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """The same weights by path and in the layout of our parameters."""
    by_path = {rule.path: rule for rule in rules}
    for path, like in flatten(shapes).items():
        rule = by_path[path]
        stacked = rule.stacked
        own = like.shape[1:] if stacked else like.shape
        shape = rule.layout.to_torch(np.broadcast_to(np.float32(0), own)).shape
        out = np.empty(like.shape, np.float32)
        for number, key in enumerate(rule.keys(like.shape[0] if stacked else 1)):
            place = out[number] if stacked else out
            place[...] = rule.layout.to_jax(tensor(key, shape))
        yield path, out


def fill(module) -> None:
    """Puts them into a PyTorch module, whose names are the official ones."""
    import torch

    with torch.no_grad():
        for key, value in module.named_parameters():
            value.copy_(torch.from_numpy(tensor(key, tuple(value.shape))))
