"""The losses: cross-entropy at the positions that predict a label, and errors of the action head.

Axes: B rows, T tokens a row, L labels a row, D width, W vocabulary, C labels of a chunk, S data
sources.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxvlm.models.partition import gathered
from jaxvlm.models.vlm import VLM
from jaxvlm.training.action_loss import action_errors

Batch = Mapping[str, Array]
# Logits of a device at a time, in numbers of 4 bytes; more are computed in chunks.
_LOGITS = 2**27


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """What each loss counts; one of 0 is not computed.

    A sample's loss of the action head counts as much as the sample's labels, so that all losses are
    means over the same labels, however samples are spread.

    Attributes:
      language: cross-entropy of the labels.
      action_json: errors of the head's boxes in metres.
      geometry_consistency: errors of their centres' projections.
    """

    language: float = 1.0
    action_json: float = 0.0
    geometry_consistency: float = 0.0

    @property
    def of_the_head(self) -> bool:
        """Whether the action head is needed."""
        return max(self.action_json, self.geometry_consistency) > 0


ANSWERS_ONLY = LossWeights()


class ActionTally(NamedTuple):
    """What the action head was wrong by; each sum is weighted by the actions' labels.

    Attributes:
      box: summed errors of boxes, see `ActionErrors`.
      projection: summed errors of projections.
      centre: summed metres between the centres.
      boxes: the weights.
    """

    box: Float[Array, ""]
    projection: Float[Array, ""]
    centre: Float[Array, ""]
    boxes: Float[Array, ""]


class Tally(NamedTuple):
    """What a batch's labels amount to.

    Attributes:
      correct: label tokens predicted rightly (greedy).
      losses: summed cross-entropy of each data source.
      labels: weights of the label tokens of each data source.
      actions: of the action head.
    """

    correct: Float[Array, ""]
    losses: Float[Array, "S"]
    labels: Float[Array, "S"]
    actions: ActionTally


def batch_loss(
    model: VLM,
    batch: Batch,
    remat: str,
    dropout_key: Array | None,
    sources: int = 1,
    weights: LossWeights = ANSWERS_ONLY,
) -> tuple[Float[Array, ""], Tally]:
    """The weighted sum of a batch's losses over its labels, and what else is to be known of it."""
    hidden = hidden_states(model, batch, remat, dropout_key)
    counts = batch["label_weights"]
    if weights.language:
        losses, right = label_scores(model, hidden, batch)
    else:
        losses, right = jnp.zeros_like(counts), jnp.zeros_like(counts)
    losses *= counts
    of_source = jax.nn.one_hot(batch["label_sources"], sources, dtype=jnp.float32)
    # No matrix product: on a GPU it would be one of fewer bits.
    by_source = (jnp.stack([losses, counts])[..., None] * of_source).sum((1, 2))
    actions = ActionTally(*[jnp.zeros([])] * len(ActionTally._fields))
    if weights.of_the_head:
        actions = action_tally(model, hidden, batch)
    total = (
        weights.language * losses.sum()
        + weights.action_json * actions.box
        + weights.geometry_consistency * actions.projection
    )
    return total, Tally((right * counts).sum(), *by_source, actions)


def hidden_states(
    model: VLM, batch: Batch, remat: str = "none", dropout_key: Array | None = None
) -> Float[Array, "B T D"]:
    """The last hidden states of a batch, which holds images, or features instead of them."""
    # Each part draws from keys of its own.
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    if "features" in batch:
        names = ("features", "feature_counts", "view_counts", "geometry")
        of_sets = (batch[name].reshape(-1, *batch[name].shape[2:]) for name in names)
        visual = model.project(*of_sets, remat=remat, dropout_key=keys[0])
    else:
        of_rows = (batch[name] for name in ("images", "view_counts", "geometry"))
        visual = model.encode_rows(*of_rows, remat=remat, dropout_key=keys[0])
    visual = visual.reshape(len(batch["tokens"]), -1, visual.shape[-1])
    x = model.embed(batch["tokens"], batch["visual_index"], visual)
    return model.language(
        x, batch["positions"], batch["segment_ids"], remat=remat, dropout_key=keys[1]
    )


def label_scores(
    model: VLM, hidden: Float[Array, "B T D"], batch: Batch
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Each label's cross-entropy in nats, and whether it is the likeliest token.

    Logits exist at label positions only.
    """
    at_labels = jnp.take_along_axis(hidden, batch["label_positions"][..., None], axis=1)
    return _scores(model, at_labels, batch["labels"])


def action_tally(model: VLM, hidden: Float[Array, "B T D"], batch: Batch) -> ActionTally:
    """What the action head makes of the tokens `<action>`."""
    at_actions = jnp.take_along_axis(hidden, batch["action_positions"][..., None], axis=1)
    sets = batch["action_sets"]
    views = jnp.take_along_axis(batch["geometry"], sets[..., None, None], axis=1)
    counts = jnp.take_along_axis(batch["view_counts"], sets, axis=1)
    found = gathered(model.action)(at_actions)
    errors = action_errors(found, batch["action_targets"], views, counts)
    weights = batch["action_weights"]
    sums = [(each * weights).sum() for each in (errors.box, errors.projection, errors.centre)]
    return ActionTally(*sums, weights.sum())


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
