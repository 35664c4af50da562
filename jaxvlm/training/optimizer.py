"""AdamW or Muon with a learning rate a parameter group, a linear warm-up, cosine decay, clipping.

Each parameter has an optimiser state of its own, so that states kept in the host's memory come to
the device one parameter at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int32

from jaxvlm.training.parameters import Group

Params = dict[str, Array]
States = dict[str, optax.OptState]


def schedule(
    max_steps: int, warmup_ratio: float, decay_ratio: float, final_ratio: float
) -> Callable[[jax.Array], jax.Array]:
    """The factor on every group's learning rate as a function of the update number (from 0).

    It rises for `warmup_ratio` of the updates, stands at 1, and falls to `final_ratio` in the last
    `decay_ratio` of them, by half a cosine; where both do not fit, it falls as soon as it is up.
    """
    warmup = max(round(max_steps * warmup_ratio), 1)
    end = max(max_steps, warmup + 1)
    falls = max(end - max(round(max_steps * decay_ratio), 1), warmup)
    # Update 0 already moves.
    rise = optax.linear_schedule(1.0 / (warmup + 1), 1.0, warmup)
    fall = optax.cosine_decay_schedule(1.0, end - falls, final_ratio)
    return optax.join_schedules([rise, optax.constant_schedule(1.0), fall], [warmup, falls])


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimiser over a flat dict of parameters.

    Attributes:
      transforms: from a parameter's clipped gradient to the direction it moves against.
      rates: learning rate of every parameter at the schedule's peak.
      factor: the schedule, of the update's number.
      clip: the gradients' largest global norm.
      on_host: whether the states lie in the host's memory.
    """

    transforms: Mapping[str, optax.GradientTransformation]
    rates: Mapping[str, float]
    factor: Callable[[Array], Array]
    clip: float
    on_host: bool = False

    def init(self, params: Params) -> States:
        """The states before the first update."""
        return {path: self.transforms[path].init(leaf) for path, leaf in params.items()}

    def update(
        self, gradients: Params, states: States, params: Params, step: Int32[Array, ""],
        norm: Array, good: Bool[Array, ""],
    ) -> tuple[Params, States]:  # fmt: skip
        """The parameters and states after update `step`; the same as before if not `good`.

        Args:
          gradients: float32, by path.
          states: of `init` or the last update.
          params: float32, by path.
          step: updates made so far.
          norm: the gradients' global norm.
          good: whether the gradients are to be trusted.
        """
        shrink = jnp.minimum(1.0, self.clip / jnp.maximum(norm, 1e-30))
        scale = -self.factor(step)
        new_params, new_states, before = {}, {}, norm
        for path, value in params.items():
            state = states[path]
            if self.on_host:
                # Fetched when the parameter before is done, or all would be here at once.
                state, before = jax.lax.optimization_barrier((state, before))
                state = _moved(state, jax.memory.Space.Device)
            direction, new = self.transforms[path].update(gradients[path] * shrink, state, value)
            moved = value + scale * self.rates[path] * direction
            moved, new = jax.tree.map(
                lambda after, before: jnp.where(good, after, before), (moved, new), (value, state)
            )
            before = moved
            new_states[path] = _moved(new, jax.memory.Space.Host) if self.on_host else new
            new_params[path] = moved
        return new_params, new_states


def on_host(leaf: Array) -> bool:
    """Whether an offloaded state's leaf lies on the host: moments do, counters need not."""
    return leaf.ndim > 0


def _moved(state: optax.OptState, space: jax.memory.Space) -> optax.OptState:
    return jax.tree.map(lambda x: jax.device_put(x, space) if on_host(x) else x, state)


def moments(path: str, config) -> int:
    """How many numbers the optimiser keeps for each of a parameter's."""
    return 1 if _by_muon(path, config) else 2


def _by_muon(path: str, config) -> bool:
    """Whether a parameter is a dense layer's kernel (or a stack of them), and these go by Muon."""
    return config.kernels == "muon" and path.endswith("/kernel") and "/patch_embed/" not in path


# The root mean square of AdamW's steps: so one learning rate does for both (arXiv 2502.16982).
_MUON_SIZE = 0.2


def _muon(momentum: float) -> optax.GradientTransformation:
    """Steps of a kernel [..., in, out]: its momentum with all singular values made alike."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    sized = optax.stateless(lambda step, _: step * _MUON_SIZE * math.sqrt(max(step.shape[-2:])))
    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=axes), sized
    )


def make_optimizer(groups: Mapping[str, Group], config, max_steps: int) -> Optimizer:
    """The optimiser over the trainable parameters.

    Args:
      groups: the group of every trainable path.
      config: the `optimizer` section.
      max_steps: updates of the whole run.
    """

    def transform(path: str, group: Group) -> optax.GradientTransformation:
        if _by_muon(path, config):
            steps = _muon(config.momentum)
        else:
            steps = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
        if not group.decayed:
            return steps
        return optax.chain(steps, optax.add_decayed_weights(config.weight_decay))

    return Optimizer(
        {path: transform(path, group) for path, group in groups.items()},
        {path: config.learning_rate[group.name] for path, group in groups.items()},
        schedule(max_steps, config.warmup_ratio, config.decay_ratio, config.final_ratio),
        config.gradient_clip,
        config.offload == "host",
    )
