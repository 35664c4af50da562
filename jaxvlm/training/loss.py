"""The loss: cross-entropy at the positions that predict a label, and what was predicted rightly.

Axes: B rows, L labels a row, D width, W vocabulary, C labels of a chunk, S data sources.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxvlm.models.vlm import VLM

Batch = Mapping[str, Array]
# Logits of a device at a time, in numbers of 4 bytes; more are computed in chunks.
_LOGITS = 2**27


class Tally(NamedTuple):
    """What a batch's labels amount to.

    Attributes:
      correct: label tokens predicted rightly (greedy).
      losses: summed cross-entropy of each data source.
      labels: label tokens of each data source.
    """

    correct: Float[Array, ""]
    losses: Float[Array, "S"]
    labels: Float[Array, "S"]


def batch_loss(
    model: VLM, batch: Batch, remat: str, dropout_key: Array | None, sources: int = 1
) -> tuple[Float[Array, ""], Tally]:
    """Summed cross-entropy of a batch of rows, in nats, and what else is to be known of it."""
    losses, right = label_scores(model, batch, remat, dropout_key)
    weights = batch["label_weights"]
    losses *= weights
    of_source = jax.nn.one_hot(batch["label_sources"], sources, dtype=jnp.float32)
    # No matrix product: on a GPU it would be one of fewer bits.
    by_source = (jnp.stack([losses, weights])[..., None] * of_source).sum((1, 2))
    return losses.sum(), Tally((right * weights).sum(), *by_source)


def label_scores(
    model: VLM, batch: Batch, remat: str = "none", dropout_key: Array | None = None
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Each label's cross-entropy in nats, and whether it is the likeliest token.

    Logits exist at label positions only. A batch holds images, or features instead of them.
    """
    rows, sets = batch["view_counts"].shape
    names = ("features", "feature_counts") if "features" in batch else ("images",)
    per_set = {
        name: batch[name].reshape(rows * sets, *batch[name].shape[2:])
        for name in (*names, "view_counts", "geometry")
    }
    visual_of = model.project if "features" in batch else model.encode
    # Each part draws from keys of its own.
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    visual = visual_of(**per_set, remat=remat, dropout_key=keys[0])
    visual = visual.reshape(rows, sets * visual.shape[1], visual.shape[2])
    x = model.embed(batch["tokens"], batch["visual_index"], visual)
    hidden = model.language(
        x, batch["positions"], batch["segment_ids"], remat=remat, dropout_key=keys[1]
    )
    at_labels = jnp.take_along_axis(hidden, batch["label_positions"][..., None], axis=1)
    return _scores(model, at_labels, batch["labels"])


def _scores(
    model: VLM, hidden: Float[Array, "B L D"], labels: Array
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Scores of labels; where there are many, logits are made and made again chunk by chunk."""

    def scored(hidden_and_labels):
        hidden, labels = hidden_and_labels
        logits = model.language.logits(hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, logits.argmax(-1) == labels

    rows, count, width = hidden.shape
    here = -(-rows // _devices())
    size = max(_LOGITS // (here * model.language.config.vocab_size), 1)
    if size >= count:
        return scored((hidden, labels))
    chunks = -(-count // size)
    padding = ((0, 0), (0, chunks * size - count))
    hidden = jnp.pad(hidden, (*padding, (0, 0))).reshape(rows, chunks, size, width)
    labels = jnp.pad(labels, padding).reshape(rows, chunks, size)
    chunked = (hidden.swapaxes(0, 1), labels.swapaxes(0, 1))
    scores = jax.lax.map(jax.checkpoint(scored, prevent_cse=False), chunked)
    return tuple(x.swapaxes(0, 1).reshape(rows, -1)[:, :count] for x in scores)


def _devices() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size
