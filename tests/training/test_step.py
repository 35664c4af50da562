"""One update: accumulation, precision, and the same on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxvlm.models.tree import load
from jaxvlm.models.vlm import abstract_vlm
from jaxvlm.paths import unflatten
from jaxvlm.training import loss
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.parameters import FROZEN
from jaxvlm.training.setup import all_parameters
from jaxvlm.training.state import new_state
from jaxvlm.training.step import make_steps
from jaxvlm.training.weights import fingerprint

KEY = jax.random.key(0)


def optimizer_of(toy, steps=20):
    groups = {path: toy.groups[path] for path in toy.trained}
    return make_optimizer(groups, toy.config.optimizer, steps)


@pytest.fixture(scope="module")
def prepared(toy):
    """State, which the steps will consume, and compiled steps."""
    optimizer = optimizer_of(toy)

    def state():
        return new_state({p: jnp.copy(v) for p, v in toy.trained.items()}, optimizer, toy.mesh)

    return state, make_steps(toy.model, optimizer, jnp.float32, "none", state())


def unequal(batch):
    """The batch without most labels of its first row."""
    weights = batch["label_weights"].copy()
    weights[0, 1:] = 0
    return {**batch, "label_weights": weights}


def test_accumulation_is_one_large_batch(toy, prepared):
    _, steps = prepared
    batch = unequal(toy.batch())
    halves = [{k: v[i : i + 1] for k, v in batch.items()} for i in (0, 1)]
    counts = [int(half["label_weights"].sum()) for half in halves]
    assert counts[0] != counts[1]
    whole = steps.accumulate(toy.trained, toy.frozen, steps.start(toy.trained), batch, KEY)
    parts = steps.start(toy.trained)
    for half in halves:
        parts = steps.accumulate(toy.trained, toy.frozen, parts, half, KEY)
    assert float(parts.labels) == float(whole.labels) == sum(counts)
    np.testing.assert_allclose(parts.loss / parts.labels, whole.loss / whole.labels, rtol=1e-5)
    for path, gradient in whole.gradients.items():
        np.testing.assert_allclose(
            parts.gradients[path] / parts.labels, gradient / whole.labels, atol=1e-5
        )


def test_sums_and_state_are_held_once(toy, prepared):
    new, steps = prepared
    state = new()
    sums = steps.start(state.params)
    more = steps.accumulate(state.params, toy.frozen, sums, toy.batch(), KEY)
    steps.update(state, more)
    given = [*sums.gradients.values(), *more.gradients.values(), *state.params.values()]
    assert all(leaf.is_deleted() for leaf in given)


def test_an_update_moves_every_trained_parameter_and_no_frozen_one(toy, prepared):
    new, steps = prepared
    state, before = new(), fingerprint(toy.frozen)
    for first in (0, 2):
        sums = steps.start(state.params)
        sums = steps.accumulate(state.params, toy.frozen, sums, toy.batch(first), KEY)
        state, metrics, sums = steps.update(state, sums)
    still = [p for p, v in state.params.items() if np.array_equal(v, toy.trained[p])]
    assert still == []
    assert fingerprint(toy.frozen) == before
    assert int(state.step) == 2
    assert float(metrics["label_tokens"]) == toy.batch(2)["label_weights"].sum()
    # What it hands back is empty again.
    assert float(optax.tree.norm(sums)) == 0.0


def test_the_metrics_are_means_over_label_tokens(toy, prepared):
    new, steps = prepared
    state = new()
    sums = steps.start(state.params)
    for first in (0, 2):
        sums = steps.accumulate(state.params, toy.frozen, sums, toy.batch(first), KEY)
    loss, labels = float(sums.loss), float(sums.labels)
    gradients = [np.asarray(g) / labels for g in sums.gradients.values()]
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    _, metrics, _ = steps.update(state, sums)
    np.testing.assert_allclose(float(metrics["loss"]), loss / labels, rtol=1e-6)
    np.testing.assert_allclose(float(metrics["gradient_norm"]), norm, rtol=1e-5)
    # A fresh model knows nothing.
    assert abs(float(metrics["loss"]) - np.log(toy.config.model.language.vocab_size)) < 1.0
    assert 0 <= float(metrics["token_accuracy"]) <= 1


@pytest.mark.slow
def test_bfloat16_trains_and_keeps_float32_masters(toy, records):
    config = tiny.config_for(records, precision="bfloat16")
    params = all_parameters(config, toy.model, toy.groups, toy.mesh)
    frozen = {p: v for p, v in params.items() if toy.groups[p].name == FROZEN}
    trained = {p: v for p, v in params.items() if p not in frozen}
    assert {v.dtype for v in frozen.values()} == {jnp.dtype("bfloat16")}
    optimizer = optimizer_of(toy)
    state = new_state(trained, optimizer, toy.mesh)
    steps = make_steps(toy.model, optimizer, jnp.bfloat16, "none", state)
    sums, losses = steps.start(state.params), []
    for _ in range(20):
        sums = steps.accumulate(state.params, frozen, sums, toy.batch(), KEY)
        state, metrics, sums = steps.update(state, sums)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert {v.dtype for v in state.params.values()} == {jnp.dtype("float32")}
    moments = [v for v in jax.tree.leaves(state.optimizer) if v.ndim]
    assert {v.dtype for v in moments} == {jnp.dtype("float32")}
    # Masters keep what bfloat16 would round away.
    kernel = state.params["language/layers/mlp/up_proj/kernel"]
    assert not np.array_equal(kernel, kernel.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_nothing(toy, prepared, remat):
    new, steps = prepared
    again = make_steps(toy.model, optimizer_of(toy), jnp.float32, remat, new())
    sums = [
        s.accumulate(toy.trained, toy.frozen, s.start(toy.trained), toy.batch(), KEY)
        for s in (steps, again)
    ]
    np.testing.assert_allclose(sums[1].loss, sums[0].loss, rtol=1e-6)
    for path, gradient in sums[0].gradients.items():
        np.testing.assert_allclose(sums[1].gradients[path], gradient, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 5 * 672 * 2])
def test_logits_in_chunks_are_those_at_once(toy, monkeypatch, most):
    """One label at a time, and chunks that do not divide the labels."""
    batch = toy.batch()
    assert batch["labels"].shape[1] % 5

    def gradients():
        def value(params):
            model = load(abstract_vlm(toy.model), unflatten({**toy.frozen, **params}))
            return loss.batch_loss(model, batch, "none", None)

        (total, tally), found = jax.value_and_grad(value, has_aux=True)(toy.trained)
        return float(total), float(tally.correct), float(tally.labels[0]), found

    whole = gradients()
    monkeypatch.setattr(loss, "_LOGITS", most)
    pieces = gradients()
    np.testing.assert_allclose(pieces[:3], whole[:3], rtol=1e-6)
    for path, gradient in whole[3].items():
        np.testing.assert_allclose(pieces[3][path], gradient, atol=1e-5, err_msg=path)


def test_bfloat16_rounds_and_float32_does_not(toy, prepared):
    new, steps = prepared
    half = make_steps(toy.model, optimizer_of(toy), jnp.bfloat16, "none", new())
    frozen = {path: leaf.astype(jnp.bfloat16) for path, leaf in toy.frozen.items()}
    exact, rounded = (
        float(s.accumulate(toy.trained, f, s.start(toy.trained), toy.batch(), KEY).loss)
        for s, f in ((steps, toy.frozen), (half, frozen))
    )
    assert 1e-5 < abs(rounded / exact - 1) < 3e-2


def test_dropout_is_drawn_anew_from_every_key(toy, prepared):
    new, steps = prepared
    projector = dataclasses.replace(toy.model.projector, dropout=0.3)
    model = dataclasses.replace(toy.model, projector=projector)
    dropping = make_steps(model, optimizer_of(toy), jnp.float32, "none", new())

    def loss(steps, seed):
        start = steps.start(toy.trained)
        key = jax.random.key(seed)
        return float(steps.accumulate(toy.trained, toy.frozen, start, toy.batch(), key).loss)

    assert loss(dropping, 0) == loss(dropping, 0)
    assert len({loss(dropping, 0), loss(dropping, 1), loss(steps, 0)}) == 3
    assert loss(steps, 0) == loss(steps, 1)
