"""Runs that begin with the parameters of another."""

import argparse
import json
import shutil

import numpy as np
import pytest
import tiny
from adapters import LORA, PARTS, RULES, configured, scores

from convert.stored import open_stored
from jaxvlm import train
from jaxvlm.config_checks import check
from jaxvlm.entry import split_overrides
from jaxvlm.errors import UserError
from jaxvlm.planning import at_start
from jaxvlm.training import loop
from jaxvlm.training.frozen import kept_shapes
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.run import find_checkpoint, run_config, run_parameters
from jaxvlm.training.weights import save_weights

ADAPTED = {**LORA, "parameters": RULES, "optimizer__learning_rate__lora": 0.03}


@pytest.fixture(scope="module")
def first(records, weights, tmp_path_factory):
    """The workdir of a run that trained everything but VGGT for six updates."""
    workdir = tmp_path_factory.mktemp("first")
    loop.train(configured(records, weights), workdir)
    return workdir


@pytest.fixture(scope="module")
def adapted(records, weights, tmp_path_factory):
    """The workdir of a run that trained adapters for six updates."""
    workdir = tmp_path_factory.mktemp("adapted")
    loop.train(configured(records, weights, **ADAPTED), workdir)
    return workdir


def parameters(workdir, step=None):
    """All parameters of a run, its frozen ones included."""
    folder = find_checkpoint(workdir) if step is None else workdir / "checkpoints" / str(step)
    return run_parameters(folder, run_config(folder, []), make_mesh(1, -1))


def begun(config, workdir):
    """The parameters with which a run begins: those after an update that changes nothing."""
    config = config.copy_and_resolve_references()
    for group in config.optimizer.learning_rate:
        config.optimizer.learning_rate[group] = 0.0
    config.train.max_steps = 1
    loop.train(config, workdir)
    return parameters(workdir)


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_run_begins_with_all_of_another_and_a_fresh_schedule(
    records, weights, first, tmp_path, capsys
):
    found = begun(configured(records, weights, init_from=str(first), seed=5), tmp_path)
    own = [path for path in found if not path.startswith("vision/")]
    said = f"init_from: {len(own)} tensors of {first / 'checkpoints' / '6'}"
    assert said in " ".join(capsys.readouterr().out.split())
    assert_equal(found, parameters(first))
    # No frozen weight came from there, so that nothing is kept twice.
    assert not (tmp_path / "frozen").exists()
    assert [line["step"] for line in _logged(tmp_path)] == [1]


def _logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_update_may_be_named(records, weights, first, tmp_path):
    update = first / "checkpoints" / "4"
    found = begun(configured(records, weights, init_from=str(update)), tmp_path)
    assert_equal(found, parameters(first, 4))


@pytest.mark.slow
def test_what_it_trained_and_this_run_freezes_is_kept(
    records, weights, first, adapted, tmp_path, toy
):
    """Everything first, then adapters: the first run and its language model's import may go."""
    gone, work = tmp_path / "gone", tmp_path / "second"
    shutil.copytree(first, gone)
    changes = {**ADAPTED, "init_from": str(gone), "model__language__weights": "not/there"}
    config = configured(records, weights, **changes)
    loop.train(config, work)
    shutil.rmtree(gone)
    before, after = parameters(first), parameters(work)
    for path, value in before.items():
        moves = path.startswith(("projector/", "geometry/"))
        assert np.array_equal(after[path], value) != moves, path
    # It goes on, from its own folder.
    shutil.rmtree(work / "checkpoints" / "6")
    loop.train(config, work)
    assert_equal(parameters(work), after)
    # And is exported as it answers.
    on = scores(config, after, toy.batch())
    off = scores(toy.config, dict(open_stored(str(work), []).params), toy.batch())
    np.testing.assert_allclose(off, on, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{}, {"model__language__frozen_layers": 1}],
)
def test_adapters_of_another_kind_are_merged(
    records, weights, adapted, toy, tmp_path, change, capsys
):
    """Adapters first, then everything: the second run begins with what the first one knew."""
    config = configured(records, weights, init_from=str(adapted), **change)
    found = begun(config, tmp_path)
    assert "its adapters added to their kernels" in " ".join(capsys.readouterr().out.split())
    before = scores(configured(records, weights, **LORA), parameters(adapted), toy.batch())
    np.testing.assert_allclose(scores(config, found, toy.batch()), before, rtol=1e-5, atol=1e-5)
    # Of the frozen first layer only the adapted kernels came from there; the rest has a name.
    kept = set(kept_shapes(tmp_path))
    assert all(path.startswith("language/frozen_layers/") for path in kept)
    assert any("q_proj" in path for path in kept) == bool(change)
    assert not any("gate_proj" in path for path in kept)


@pytest.mark.slow
def test_adapters_of_the_same_kind_go_on(records, weights, adapted, tmp_path):
    changes = {**ADAPTED, "model__language__lora__dropout": 0.1, "init_from": str(adapted)}
    found = begun(configured(records, weights, **changes), tmp_path)
    assert_equal(found, parameters(adapted))
    assert not (tmp_path / "frozen").exists()


@pytest.mark.slow
def test_a_part_that_the_other_lacks_begins_anew(records, weights, tmp_path, capsys):
    without, work = tmp_path / "without", tmp_path / "work"
    loop.train(configured(records, weights, model__geometry__mode="none"), without)
    found = begun(configured(records, weights, init_from=str(without)), work)
    assert "new here: geometry" in " ".join(capsys.readouterr().out.split())
    imported = open_stored(str(weights), []).params
    other = parameters(without)
    for path, value in found.items():
        expected = imported if path.startswith("geometry/") else other
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    config = configured(records, weights, init_from=str(work), model__geometry__mode="none")
    begun(config, tmp_path / "back")
    assert "its geometry is not used" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_is_not_there_is_named_before_the_planning(records, tmp_path, monkeypatch):
    monkeypatch.setattr(at_start, "settled", lambda config: pytest.fail("planned"))
    given = tiny.arguments(records, tmp_path / "run", "init_from=nowhere", "train.remat=auto")
    arguments, overrides = split_overrides(given)
    flags = train.parser().parse_args(arguments, argparse.Namespace(overrides=overrides))
    with pytest.raises(UserError, match=r"init_from .*nowhere does not exist"):
        train.main(flags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, "init_from .*nowhere does not exist"),
        (
            {"model__language__num_heads": 4, "model__projector__ffn_dim": 64},
            "sizes: --config.model.projector.ffn_dim=32 --config.model.language.num_heads=2",
        ),
        (
            {"model__vision__weights": None},
            "did not train all of vision.*=None are not these weights",
        ),
        ({"text__tokenizer": "TOKENIZER"}, "tokens have other ids"),
    ],
)
def test_another_model_is_refused_before_the_first_update(
    records, weights, first, tmp_path, changes, message
):
    if "text__tokenizer" in changes:
        changes = {"text__tokenizer": str(_another_tokenizer(tmp_path))}
    config = configured(records, weights, **{"init_from": str(first), **changes})
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path / "work")
    assert not (tmp_path / "work" / "config.json").exists()


def _another_tokenizer(folder):
    """The shipped one with two ids changed."""
    from jaxvlm.data.tokenizer import BUILT_IN

    place = shutil.copytree(BUILT_IN["jaxvlm:rooms"], folder / "tokenizer")
    described = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    one, other = list(vocabulary)[:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (place / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    return place


def test_other_weights_beside_it_are_refused(records, weights, first, toy, tmp_path):
    vision = {p: np.asarray(v) + 1 for p, v in toy.frozen.items() if p.startswith("vision/")}
    sizes = json.loads((weights / "meta.json").read_text())["model"]
    save_weights(tmp_path / "other", vision, {"model": {"vision": sizes["vision"]}})
    changes = {"init_from": str(first), "model__vision__weights": str(tmp_path / "other")}
    with pytest.raises(UserError, match=f"Set model.vision.weights='{weights}'"):
        loop.train(configured(records, weights, **changes), tmp_path / "work")


@pytest.mark.slow
def test_kept_weights_that_are_damaged_are_named(records, weights, first, tmp_path):
    config = configured(records, weights, **ADAPTED, init_from=str(first))
    loop.train(config, tmp_path)
    for file in (tmp_path / "frozen" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    with pytest.raises(UserError, match=r"frozen.*is damaged.*another --workdir"):
        loop.train(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gone", pytest.param("another's", marks=pytest.mark.slow)])
def test_kept_weights_that_are_not_the_runs_own_are_refused(
    records, weights, adapted, tmp_path, what
):
    """Of the language model only the adapted kernels are kept; the rest is imported."""
    rules = (("vision/.*", "frozen"), ("language/.*", "frozen"), (".*", "projector"))
    works = [tmp_path / name for name in ("one", "other")]
    updates = [adapted, adapted / "checkpoints" / "4"]
    for work, update in zip(works, updates, strict=True):
        loop.train(configured(records, weights, parameters=rules, init_from=str(update)), work)
    work, other = works
    config = configured(records, weights, parameters=rules, init_from=str(adapted))
    shutil.rmtree(work / "frozen")
    if what == "another's":
        shutil.copytree(other / "frozen", work / "frozen")
    message = "frozen is not there, or not the one that .*one was trained with"
    with pytest.raises(UserError, match=message):
        loop.train(config, work, resume_from=4)
    for use in (parameters, lambda folder: open_stored(str(folder), [])):
        with pytest.raises(UserError, match=message):
            use(work)
    with pytest.raises(UserError, match=message):
        loop.train(configured(records, weights, init_from=str(work)), tmp_path / "third")
    assert (work / "checkpoints" / "6").is_dir()


@pytest.mark.slow
def test_imported_weights_may_have_moved_since(records, weights, adapted, toy, tmp_path):
    """Adapters are merged into the same weights in another place."""
    moved = shutil.copytree(weights, tmp_path / "moved")
    gone = tmp_path / "gone"
    shutil.copytree(adapted, gone)
    stored = json.loads((gone / "config.json").read_text())
    for part in PARTS:
        stored["model"][part]["weights"] = "no/longer/there"
    (gone / "config.json").write_text(json.dumps(stored))
    found = begun(configured(records, moved, init_from=str(gone)), tmp_path / "work")
    before = scores(configured(records, weights, **LORA), parameters(adapted), toy.batch())
    after = scores(configured(records, weights), found, toy.batch())
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "init_from='': expected the workdir of a run"),
        ("checkpoints/5", "checkpoints/5 does not exist; .*checkpoints holds 4, 6"),
        ("config.json", "is a file; give the --workdir of a run"),
    ],
)
def test_what_is_no_run_is_named(first, name, message):
    with pytest.raises(UserError, match=message):
        if name:
            find_checkpoint(first / name, "init_from")
        else:
            check(tiny.config_for(first, init_from=name))
