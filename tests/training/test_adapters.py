"""Adapters (LoRA), and first layers that stay as they are."""

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from adapters import LORA, RULES, configured, scores
from conftest import make_toy

from convert import export_torch
from convert.stored import open_stored
from jaxvlm.errors import UserError
from jaxvlm.generation.restore import restore_answerer
from jaxvlm.models import lora, perceiver
from jaxvlm.models.adapted import merged
from jaxvlm.models.lora import LoraConfig, is_adapter
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import abstract_vlm, vlm_config
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training import loop
from jaxvlm.training.loss import hidden_states
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.run import find_checkpoint, run_config, run_parameters
from jaxvlm.training.state import abstract_parameters, new_state


@pytest.fixture(scope="module")
def adapted(records, weights, tmp_path_factory):
    """The workdir of a run that trained adapters, with dropout, for six updates."""
    workdir = tmp_path_factory.mktemp("adapted")
    config = configured(
        records, weights, **LORA, parameters=RULES, optimizer__learning_rate__lora=0.03
    )
    loop.train(config, workdir)
    return workdir


def test_an_adapter_changes_nothing_before_it_is_trained(toy, records, weights):
    plain = scores(toy.config, {**toy.trained, **toy.frozen}, toy.batch())
    config = configured(records, weights, **LORA, parameters=RULES)
    other = make_toy(config)
    found = scores(config, {**other.trained, **other.frozen}, toy.batch())
    np.testing.assert_array_equal(found, plain)
    first = [leaf for path, leaf in other.trained.items() if path.endswith("q_proj/lora_a")]
    assert first and all(0 < float(jnp.abs(leaf).max()) <= 32**-0.5 for leaf in first)


def test_only_adapters_learn_and_the_optimiser_knows_no_more(toy, records, weights):
    config = configured(records, weights, **LORA, parameters=RULES)
    made = make_toy(config)
    language = {path for path in made.trained if path.startswith("language/")}
    assert language == {p for p in made.trained if is_adapter(p)} and len(language) == 10
    optimizer = make_optimizer({p: made.groups[p] for p in made.trained}, config.optimizer, 5)
    state = new_state(made.trained, optimizer, made.mesh)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in made.trained.values())
    sizes = [(32, 32), (32, 16), (32, 16), (32, 32), (48, 32)]
    per_layer = sum(4 * (width + out) for width, out in sizes)
    assert sum(made.trained[p].size for p in language) == 2 * per_layer


def test_a_run_moves_adapters_and_no_kernel(adapted, weights):
    stored = open_stored(str(adapted), [])
    own = json.loads((adapted / "config.json").read_text())
    assert own["model"]["language"]["lora"]["rank"] == 4
    plain = open_stored(str(weights), [])
    for path, value in plain.params.items():
        adapted_kernel = path.split("/")[-2] in LORA["model__language__lora__targets"]
        moved = not np.array_equal(stored.params[path], value)
        assert moved == (adapted_kernel or path.startswith(("projector/", "geometry/"))), path


def test_answers_are_the_adapted_models(adapted, toy, records):
    """Adapters are added to their kernels: a prompt's logits are those of the training pass."""
    folder = find_checkpoint(adapted)
    config = run_config(folder, [])
    answerer = restore_answerer(folder, config)
    model_config = vlm_config(config.model)
    params = run_parameters(folder, config, toy.mesh)
    model = load(abstract_vlm(model_config), unflatten(params)).language
    tokens = np.arange(12)[None]
    places = jnp.arange(12)[None]
    expected = model.logits(model(model.embed(tokens), places, jnp.ones_like(places)))
    decoder, weights = answerer.engine._program.decoder, answerer.engine._weights
    assert decoder.config.lora is None and model_config.language.lora is not None
    hidden, _ = decoder.prefill(weights, decoder.embed(weights, tokens))
    np.testing.assert_allclose(decoder.logits(weights, hidden), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_export_is_the_adapted_model(adapted, toy, records, tmp_path):
    folder = find_checkpoint(adapted)
    config = run_config(folder, [])
    on = scores(config, run_parameters(folder, config, toy.mesh), toy.batch())
    stored = open_stored(str(adapted), [])
    off = scores(toy.config, dict(stored.params), toy.batch())
    np.testing.assert_allclose(off, on, rtol=1e-5, atol=1e-5)
    flags = export_torch.parser().parse_args([str(adapted), str(tmp_path / "hf")])
    flags.overrides = []
    with contextlib.redirect_stdout(io.StringIO()):
        export_torch.main(flags)
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    kernel = model.state_dict()["model.layers.1.self_attn.q_proj.weight"].numpy()
    np.testing.assert_array_equal(kernel.T, stored.params["language/layers/attn/q_proj/kernel"][1])


def test_dropout_of_adapters_is_drawn_from_the_key(records, weights):
    config = configured(
        records, weights, **LORA, parameters=RULES, model__language__lora__dropout=0.5
    )
    made = make_toy(config)
    params = {p: leaf + 0.05 if is_adapter(p) else leaf for p, leaf in made.trained.items()}
    model = load(abstract_vlm(made.model), unflatten({**params, **made.frozen}))
    keys = (None, None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    losses = [float(hidden_states(model, made.batch(), "none", key).sum()) for key in keys]
    assert losses[0] == losses[1] and losses[2] == losses[3] and len(set(losses)) == 3


def test_every_place_draws_its_dropout_from_a_key_of_its_own(toy, records, weights, monkeypatch):
    drawn = []

    def recorded(x, rate, key):
        if key is not None:
            jax.debug.callback(
                lambda bits: drawn.append(tuple(bits.tolist())), jax.random.key_data(key)
            )
        return x

    for module in (lora, perceiver):
        monkeypatch.setattr(module, "dropout", recorded)
    config = configured(
        records, weights, **LORA, parameters=RULES, model__language__lora__dropout=0.5,
        model__projector__dropout=0.5, model__projector__num_layers=1,
    )  # fmt: skip
    made = make_toy(config)
    model = load(abstract_vlm(made.model), unflatten({**made.trained, **made.frozen}))
    hidden_states(model, made.batch(), "none", jax.random.key(0))
    jax.effects_barrier()
    # Five adapted maps in each of two layers; in the projector attention, to itself too, and MLP.
    assert len(drawn) >= 12 and len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_every_micro_batch_draws_its_dropout_from_a_key_of_its_own(records, tmp_path, monkeypatch):
    make, drawn = loop.run_steps, []

    def recorded(*arguments):
        steps = make(*arguments)

        def accumulate(params, frozen, sums, batch, key):
            drawn.append(tuple(jax.random.key_data(key).tolist()))
            return steps.accumulate(params, frozen, sums, batch, key)

        return steps._replace(accumulate=accumulate)

    monkeypatch.setattr(loop, "run_steps", recorded)
    config = tiny.config_for(records, train__rows_per_device=1, train__accumulation=2)
    loop.train(config, tmp_path)
    assert len(drawn) == 12 and len(set(drawn)) == 12


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (RULES[:2] + RULES[3:], r"freezes the adapter .*lora_a', which would stay without effect"),
        ((*RULES[:3], ("language/.*", "language")), r"kernel' learn, and so does the adapter"),
    ],
)
def test_adapters_without_effect_or_beside_kernels_that_learn_are_refused(
    records, weights, tmp_path, rules, message
):
    with pytest.raises(UserError, match=message):
        loop.train(configured(records, weights, **LORA, parameters=rules), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("q_proj", "w_proj")}, "lora.targets=.*expected some of q_proj"),
        ({"targets": ()}, "lora.targets="),
        ({"alpha": 0.0}, "lora.alpha=0.0: expected more than 0"),
        ({"dropout": 1.0}, "lora.dropout=1.0"),
        ({"rank": -1}, "lora.rank=-1"),
    ],
)
def test_impossible_adapters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**{"rank": 4, **change})


@pytest.mark.slow
def test_first_layers_stay_and_the_others_learn(toy, records, weights, tmp_path):
    config = configured(records, weights, model__language__frozen_layers=1)
    shapes = abstract_parameters(vlm_config(config.model))
    assert shapes["language/frozen_layers/attn/q_proj/kernel"].shape == (1, 32, 32)
    made = make_toy(config)
    # It computes what the plain model computes.
    plain = scores(toy.config, {**toy.trained, **toy.frozen}, toy.batch())
    found = scores(config, {**made.trained, **made.frozen}, toy.batch())
    np.testing.assert_allclose(found, plain, rtol=1e-6, atol=1e-6)
    loop.train(config, tmp_path)
    stored = open_stored(str(tmp_path), [])
    before = {**toy.trained, **toy.frozen}
    for path, value in stored.params.items():
        if path.startswith("language/layers/"):
            np.testing.assert_array_equal(value[0], before[path][0], err_msg=path)
            assert not np.array_equal(value[1], before[path][1]), path
    # And it goes on.
    folder = find_checkpoint(tmp_path)
    own = run_config(folder, [])
    params = run_parameters(folder, own, make_mesh(-1, -1))
    merged_layers = merged(
        "language/layers/mlp/up_proj/kernel",
        vlm_config(config.model).language,
        lambda path: np.asarray(params[path]),
    )
    np.testing.assert_array_equal(
        merged_layers, stored.params["language/layers/mlp/up_proj/kernel"]
    )
    assert set(flatten(unflatten(params))) == set(shapes)
    # And it answers, with all layers in their order.
    weights = restore_answerer(folder, own).engine._weights
    for index, layer in enumerate(weights.layers):
        np.testing.assert_array_equal(layer["mlp"]["up_proj"]["kernel"], merged_layers[index])


def test_all_layers_are_frozen_by_a_rule_instead(records):
    with pytest.raises(UserError, match=r"frozen_layers=2: expected less than num_layers=2"):
        vlm_config(tiny.config_for(records, model__language__frozen_layers=2).model)
