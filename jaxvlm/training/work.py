"""What batches hold that is no padding, and the operations that learning from it takes.

Axes: B rows, T tokens a row, S image sets a row.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvlm.models.flops import Flops
from jaxvlm.models.vlm import VLMConfig

# Which parts' output each part reads.
_BEFORE = {"projector": ("vision",), "language": ("vision", "projector", "geometry")}


class Work(NamedTuple):
    """Counts, each a float32 scalar in a compiled step.

    Attributes:
      samples: questions.
      tokens: of the language model, visual ones among them.
      pairs: of a token and one that it attends to, itself among them.
      sets: image sets.
      views: of all sets.
      squares: the sum of the squares of the sets' views.
      labels: tokens with a label.
    """

    samples: float
    tokens: float
    pairs: float
    sets: float
    views: float
    squares: float
    labels: float


def work_of(batch: Mapping[str, jax.Array]) -> Work:
    """What a batch of the contract's rows holds."""
    real = batch["segment_ids"] > 0
    views = batch["view_counts"].astype(jnp.float32)
    counts = (
        batch["segment_ids"].max(axis=1),
        real,
        # Positions restart with every sample, which attends to itself alone.
        real * (batch["positions"] + 1),
        views > 0,
        views,
        views**2,
        batch["label_weights"] > 0,
    )
    return Work(*(count.sum(dtype=jnp.float32) for count in counts))


def model_flops(
    config: VLMConfig,
    work: Work,
    image: tuple[int, int],
    trained: Mapping[str, float],
    cached: bool = False,
) -> float:
    """Operations of forward and backward pass; nothing that is computed twice, and no padding.

    This is the numerator of the model FLOPs utilisation (MFU) of PaLM, arXiv 2204.02311, with the
    causal half of the decoder's attention counted once.

    Args:
      config: sizes.
      work: of an update.
      image: height and width in pixels.
      trained: the share of each part's parameters that learn.
      cached: whether the features of vision come from a cache.
    """
    total = 0.0
    for part, flops in forward_flops(config, work, image, cached).items():
        # Gradients flow through the parts behind the first that learns, and into that.
        before = any(trained.get(other) for other in _BEFORE.get(part, ()))
        share = trained.get(part, 0.0)
        back = float(before or share > 0)
        total += flops.linear * (1 + back + share) + flops.attention * (1 + 2 * back)
        total += flops.entry * (1 + before + share)
    return total


def forward_flops(
    config: VLMConfig, work: Work, image: tuple[int, int], cached: bool = False
) -> dict[str, Flops]:
    """Operations of each part's forward pass; see `model_flops`."""
    parts = {}
    context = work.views * config.vision.tokens_per_view(*image)
    if config.projector.context == "first":
        context = min(context, work.sets * config.projector.context_tokens)
    if not cached:
        parts["vision"] = config.vision.flops(work.views, *image, work.squares)
    if config.geometry is not None:
        parts["geometry"] = config.geometry.flops(work.views)
    return parts | {
        "projector": config.projector.flops(work.sets, context),
        "language": config.language.flops(work.tokens, work.pairs, work.labels),
    }


def trained_shares(shapes: Mapping[str, jax.ShapeDtypeStruct], learning) -> dict[str, float]:
    """The share of each part's parameters that learn, by the paths of those."""
    sizes: dict[str, list[int]] = {}
    for path, leaf in shapes.items():
        part = sizes.setdefault(path.split("/")[0], [0, 0])
        part[0] += leaf.size
        part[1] += leaf.size * (path in learning)
    return {part: some / whole for part, (whole, some) in sizes.items()}
