"""Schedule, clipping, weight decay and learning rates, each by itself."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.optimizer import make_optimizer, moments, schedule
from jaxvlm.training.parameters import Group
from jaxvlm.training.state import new_state

GROUPS = {
    "language/kernel": Group("language", True),
    "language/scale": Group("language", False),
    "projector/kernel": Group("projector", True),
}


def settings(**changes) -> ConfigDict:
    values = {
        "learning_rate": {"language": 1e-2, "projector": 4e-2},
        "warmup_ratio": 0.0,
        "decay_ratio": 1.0,
        "final_ratio": 1.0,
        "weight_decay": 0.0,
        "gradient_clip": 1e9,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-12,
        "kernels": "adamw",
        "momentum": 0.9,
        "offload": "device",
    }
    return ConfigDict({**values, **changes})


def one_update(config, gradient: float, steps: int = 1):
    """The change of parameters that start at 2 by `steps` equal gradients, and the Adam state."""
    optimizer = make_optimizer(GROUPS, config, 100)
    params = {path: jnp.full(3, 2.0) for path in GROUPS}
    state = optimizer.init(params)
    gradients = {path: jnp.full(3, gradient) for path in GROUPS}
    moved = params
    for _ in range(steps):
        moved, state = optimizer.update(
            gradients, state, moved, jnp.int32(0), optax.tree.norm(gradients), jnp.bool(True)
        )
    return {path: np.asarray(moved[path] - params[path]) for path in params}, state


def test_the_schedule_warms_up_from_above_zero_and_ends_at_the_final_ratio():
    factor = schedule(100, 0.1, 1.0, 0.2)
    values = np.array([float(factor(step)) for step in range(101)])
    np.testing.assert_allclose(values[:11], np.arange(1, 12) / 11, rtol=1e-6)
    assert (np.diff(values[10:]) < 0).all()
    assert values.max() == values[10] == 1.0
    np.testing.assert_allclose(values[100], 0.2, atol=1e-6)
    # Halfway down the cosine.
    np.testing.assert_allclose(values[55], 0.6, atol=1e-6)


def test_the_schedule_can_stand_before_it_falls():
    factor = schedule(100, 0.1, 0.4, 0.2)
    values = np.array([float(factor(step)) for step in range(101)])
    np.testing.assert_allclose(values[10:61], 1.0)
    assert (np.diff(values[60:]) < 0).all()
    np.testing.assert_allclose(values[[80, 100]], [0.6, 0.2], atol=1e-6)


@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.0), (1, 1.0), (7, 0.0), (3, 1.0)])
def test_the_schedule_of_a_short_run_never_stands_still(steps, ratio):
    factor = schedule(steps, ratio, 1.0, 0.0)
    values = [float(factor(step)) for step in range(steps)]
    assert min(values) > 0 and max(values) <= 1


def test_each_group_has_its_own_learning_rate():
    updates, _ = one_update(settings(), 0.3)
    # Adam's first step has the length of the learning rate.
    factor = float(schedule(100, 0.0, 1.0, 1.0)(0))
    np.testing.assert_allclose(updates["language/kernel"], -1e-2 * factor, rtol=1e-4)
    np.testing.assert_allclose(updates["projector/kernel"], -4e-2 * factor, rtol=1e-4)


def test_only_decayed_groups_decay():
    plain, _ = one_update(settings(), 0.3)
    decayed, _ = one_update(settings(weight_decay=0.1), 0.3)
    factor = float(schedule(100, 0.0, 1.0, 1.0)(0))
    np.testing.assert_array_equal(decayed["language/scale"], plain["language/scale"])
    for path, rate in (("language/kernel", 1e-2), ("projector/kernel", 4e-2)):
        # Decoupled: the learning rate times the decay times the parameter, 2.
        np.testing.assert_allclose(
            decayed[path] - plain[path], -rate * factor * 0.1 * 2.0, rtol=1e-4
        )


def test_gradients_are_clipped_by_their_global_norm():
    _, state = one_update(settings(gradient_clip=0.5), 10.0)
    norm = np.sqrt(sum(float((m**2).sum()) for m in first_moments(state).values()))
    np.testing.assert_allclose(norm, 0.1 * 0.5, rtol=1e-5)
    _, state = one_update(settings(gradient_clip=0.5), 1e-3)
    np.testing.assert_allclose(first_moments(state)["language/kernel"], 1e-4, rtol=1e-5)


def first_moments(states) -> dict:
    def is_adam(part) -> bool:
        return hasattr(part, "mu")

    found = {path: jax.tree.leaves(state, is_leaf=is_adam) for path, state in states.items()}
    return {path: next(p.mu for p in parts if is_adam(p)) for path, parts in found.items()}


@pytest.mark.parametrize("offload", ["device", "host"])
def test_an_update_that_is_not_good_changes_nothing(offload):
    optimizer = make_optimizer(GROUPS, settings(offload=offload, weight_decay=0.1), 100)
    mesh = make_mesh(1, -1)
    params = {path: jnp.full(3, 2.0) for path in GROUPS}
    state = new_state(params, optimizer, mesh)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim}
    assert (kinds == {"pinned_host"}) == (offload == "host")
    gradients = {path: jnp.full(3, jnp.nan) for path in GROUPS}
    bad = (gradients, state.optimizer, params, jnp.int32(0), jnp.nan, jnp.bool(False))
    moved, states = jax.jit(optimizer.update)(*bad)
    for one, other in zip(
        jax.tree.leaves((moved, states)), jax.tree.leaves((params, state.optimizer)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kernels", ["adamw", "muon"])
def test_moments_on_the_host_make_the_same_updates(kernels):
    gradients = {path: jnp.arange(12.0).reshape(4, 3) - 1 for path in GROUPS}
    ends = {}
    for offload in ("device", "host"):
        config = settings(kernels=kernels, offload=offload, weight_decay=0.1)
        optimizer = make_optimizer(GROUPS, config, 100)
        params = {path: jnp.full((4, 3), 2.0) for path in GROUPS}
        states = new_state(params, optimizer, make_mesh(1, -1)).optimizer
        for step in range(5):
            args = (gradients, states, params, jnp.int32(step), jnp.float32(2.0), jnp.bool(True))
            params, states = jax.jit(optimizer.update)(*args)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(states) if leaf.ndim}
        assert (kinds == {"pinned_host"}) == (offload == "host")
        ends[offload] = params
    for path, value in ends["device"].items():
        np.testing.assert_array_equal(ends["host"][path], value)
        assert (value != 2.0).any()


def muon_step(gradient: np.ndarray, steps: int = 1) -> np.ndarray:
    """The change of a stack of kernels by equal gradients, in learning rates."""
    config = settings(kernels="muon", gradient_clip=1e9)
    optimizer = make_optimizer({"language/kernel": GROUPS["language/kernel"]}, config, 100)
    params = {"language/kernel": jnp.zeros(gradient.shape)}
    gradients = {"language/kernel": jnp.asarray(gradient, jnp.float32)}
    states, moved = optimizer.init(params), params
    for _ in range(steps):
        args = gradients, states, moved, jnp.int32(0), jnp.float32(1.0), jnp.bool(True)
        moved, states = optimizer.update(*args)
    factor = float(schedule(100, 0.0, 1.0, 1.0)(0))
    return np.asarray(moved["language/kernel"]) / (-1e-2 * factor * steps)


@examples(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([(6, 4), (4, 6), (3, 8, 8)]))
def test_muon_steps_along_all_singular_vectors_alike(seed, shape):
    """`U S Vᵀ` becomes about `U Vᵀ`, whatever its size; Newton-Schulz is coarse."""
    gradient = np.random.default_rng(seed).normal(size=shape) * 10.0 ** (seed % 7 - 3)
    step = muon_step(gradient)
    size = 0.2 * np.sqrt(max(shape[-2:]))
    left, values, right = np.linalg.svd(gradient, full_matrices=False)
    seen = left.swapaxes(-1, -2) @ (step / size) @ right.swapaxes(-1, -2)
    strong = values > 0.05 * values.max(-1, keepdims=True)
    diagonal = np.diagonal(seen, axis1=-2, axis2=-1)
    assert (np.abs(diagonal - 1)[strong] < 0.35).all()
    away = seen - diagonal[..., None] * np.eye(values.shape[-1])
    np.testing.assert_allclose(away, 0, atol=1e-3)


def test_kernels_alone_go_by_muon():
    config = settings(kernels="muon")
    paths = {
        "language/layers/q_proj/kernel": 1,
        "projector/in_proj/kernel": 1,
        "projector/in_proj/bias": 2,
        "projector/latents": 2,
        "language/embed_tokens/embedding": 2,
        "language/norm/scale": 2,
        "vision/patch_embed/proj/kernel": 2,
        "language/layers/q_proj/lora_a": 2,
    }
    groups = dict.fromkeys(paths, GROUPS["language/kernel"])
    shapes = {path: jnp.zeros([5, 3]) for path in paths}
    states = make_optimizer(groups, config, 100).init(shapes)
    for path, expected in paths.items():
        kept = [leaf for leaf in jax.tree.leaves(states[path]) if leaf.shape == (5, 3)]
        assert len(kept) == expected == moments(path, config)
        assert moments(path, settings()) == 2


SPLIT = """
import jax, jax.numpy as jnp, numpy as np
from ml_collections import ConfigDict
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.parameters import Group
from jaxvlm.training.state import new_state
from jax.sharding import NamedSharding, PartitionSpec
path, values = "language/kernel", np.random.default_rng(0).normal(size=(2, 64, 32))
values = values.astype(np.float32)
optimizer = make_optimizer({path: Group("language", True)}, ConfigDict(SETTINGS), 100)
ends = []
mesh = make_mesh(1, 4)
for axis in (None, "fsdp"):
    placed = NamedSharding(mesh, PartitionSpec(None, axis, None))
    params = {path: jax.device_put(jnp.ones(values.shape), placed)}
    states = new_state(params, optimizer, mesh).optimizer
    kept = [leaf for leaf in jax.tree.leaves(states) if leaf.shape == values.shape]
    assert len(kept) == 1 and kept[0].sharding == placed
    for step in range(3):
        gradients = {path: jax.device_put(values, placed)}
        args = gradients, states, params, jnp.int32(step), jnp.float32(1), jnp.bool(True)
        params, states = jax.jit(optimizer.update)(*args)
    ends.append(np.asarray(params[path]))
np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4)
assert np.abs(ends[0] - 1).max() > 1e-3
"""


def test_muon_of_a_split_kernel_is_that_of_a_whole_one():
    """Its momentum lies where the kernel lies."""
    program = SPLIT.replace("SETTINGS", repr(settings(kernels="muon").to_dict()))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
