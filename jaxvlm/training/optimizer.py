"""AdamW with a learning rate a parameter group, cosine decay after a linear warm-up, clipping."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jaxvlm.training.parameters import Group


def schedule(
    max_steps: int, warmup_ratio: float, final_ratio: float
) -> Callable[[jax.Array], jax.Array]:
    """The factor on every group's learning rate as a function of the update number (from 0)."""
    warmup = max(round(max_steps * warmup_ratio), 1)
    return optax.warmup_cosine_decay_schedule(
        # Update 0 already moves.
        init_value=1.0 / (warmup + 1),
        peak_value=1.0,
        warmup_steps=warmup,
        decay_steps=max(max_steps, warmup + 1),
        end_value=final_ratio,
    )


def make_optimizer(
    groups: Mapping[str, Group], config, max_steps: int
) -> optax.GradientTransformation:
    """The optimiser over the flat dict of trainable parameters.

    Args:
      groups: the group of every trainable path.
      config: the `optimizer` section.
      max_steps: updates of the whole run.
    """
    rates = {path: config.learning_rate[group.name] for path, group in groups.items()}
    decayed = {path: group.decayed for path, group in groups.items()}
    factor = schedule(max_steps, config.warmup_ratio, config.final_ratio)

    def descend(updates, count):
        scale = -factor(count)
        return {path: scale * rates[path] * update for path, update in updates.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        _by_count(descend),
    )


def _by_count(function) -> optax.GradientTransformation:
    """A transformation of the updates and the number of updates made so far."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params
        new = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
        return function(updates, state.count), new

    return optax.GradientTransformation(init, update)
