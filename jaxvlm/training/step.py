"""The train step: summed gradients of one micro-batch, and the update made of several.

Losses and gradients are summed over label tokens and divided once by the sum of their weights, so
that an update does not depend on how its samples were spread over micro-batches and devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxvlm.models.tree import load
from jaxvlm.models.vlm import VLMConfig, abstract_vlm
from jaxvlm.paths import unflatten
from jaxvlm.training.loss import (
    ANSWERS_ONLY,
    ActionTally,
    Batch,
    LossWeights,
    Tally,
    batch_loss,
)
from jaxvlm.training.optimizer import Optimizer, Params
from jaxvlm.training.state import TrainState
from jaxvlm.training.work import Work, work_of


class Sums(NamedTuple):
    """What an update accumulates over its micro-batches.

    Attributes:
      gradients: float32 sums over label tokens.
      loss: the summed losses, each with its weight.
      tally: of the labels.
      work: what the batches held.
    """

    gradients: Params
    loss: Float[Array, ""]
    tally: Tally
    work: Work

    @property
    def labels(self) -> Float[Array, ""]:
        """The weights of the label tokens together."""
        return self.tally.labels.sum()


class Steps(NamedTuple):
    """The compiled functions of a run; each gives up (donates) the state and sums it replaces.

    Attributes:
      start: `(params) -> sums` of nothing.
      accumulate: `(params, frozen, sums, batch, key) -> sums` with one micro-batch more.
      update: `(state, sums) -> (state, metrics, sums of nothing)`. An update without a label, or
        whose loss or gradient is not finite, changes nothing but the step: it is `skipped`.
    """

    start: Callable
    accumulate: Callable
    update: Callable


def _zero_sums(params: Params, sources: int) -> Sums:
    zero, each = jnp.zeros([], jnp.float32), jnp.zeros([sources], jnp.float32)
    gradients = jax.tree.map(jnp.zeros_like, params)
    tally = Tally(zero, each, each, ActionTally(*[zero] * len(ActionTally._fields)))
    return Sums(gradients, zero, tally, Work(*[zero] * len(Work._fields)))


def make_steps(
    config: VLMConfig,
    optimizer: Optimizer,
    dtype: jnp.dtype,
    remat: str,
    state: TrainState,
    sources: int = 1,
    weights: LossWeights = ANSWERS_ONLY,
) -> Steps:
    """Compiles the steps of a run.

    Args:
      config: sizes.
      optimizer: over the trainable parameters.
      dtype: of the computation; gradients are taken with respect to the parameters in it.
      remat: what the backward pass recomputes.
      state: where it lies, the new state will lie, and gradients like their parameters.
      sources: of the data, whose losses are summed apart.
      weights: of the losses.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole = placed.step
    rest = jax.eval_shape(lambda: _zero_sums({}, sources))
    sums_placed = jax.tree.map(lambda _: whole, rest)._replace(gradients=placed.params)
    abstract = abstract_vlm(config)

    def start(params: Params) -> Sums:
        return _zero_sums(params, sources)

    def accumulate(params: Params, frozen: Params, sums: Sums, batch: Batch, key) -> Sums:
        def loss(compute: Params):
            model = load(abstract, unflatten({**frozen, **compute}))
            return batch_loss(model, batch, remat, key, sources, weights)

        compute = {path: leaf.astype(dtype) for path, leaf in params.items()}
        (value, tally), gradients = jax.value_and_grad(loss, has_aux=True)(compute)
        more = Sums(gradients, value, tally, work_of(batch))
        return jax.tree.map(lambda total, part: total + part.astype(jnp.float32), sums, more)

    def update(state: TrainState, sums: Sums):
        count = jnp.maximum(sums.labels, 1.0)
        gradients = {path: g / count for path, g in sums.gradients.items()}
        norm = optax.tree.norm(gradients)
        good = jnp.isfinite(sums.loss) & jnp.isfinite(norm) & (sums.labels > 0)
        params, states = optimizer.update(
            gradients, state.optimizer, state.params, state.step, norm, good
        )
        metrics = {
            "loss": sums.loss / count,
            "token_accuracy": sums.tally.correct / count,
            "gradient_norm": norm,
            "label_tokens": sums.work.labels,
            "skipped": 1.0 - good,
            "tally": sums.tally,
            "work": sums.work,
        }
        return TrainState(state.step + 1, params, states), metrics, start(params)

    # Without `out_shardings` the sums, which start from constants, would lie whole on every device.
    return Steps(
        jax.jit(start, out_shardings=sums_placed),
        jax.jit(accumulate, donate_argnames="sums", out_shardings=sums_placed),
        jax.jit(
            update,
            donate_argnames=("state", "sums"),
            out_shardings=(placed, whole, sums_placed),
        ),
    )
