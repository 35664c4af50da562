"""Answers of a trained run, beside the same model run without a cache."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from answering import answer_records

from jaxvlm.data.readers import FeatureReader
from jaxvlm.data.record import scene_of
from jaxvlm.data.sequence import prompt
from jaxvlm.data.sources import load_sources
from jaxvlm.errors import UserError
from jaxvlm.generation import answer, restore
from jaxvlm.generation.answer import Asked, Conversation, Group, answers, prompts
from jaxvlm.generation.controls import other_scenes
from jaxvlm.generation.engine import Engine
from jaxvlm.generation.restore import imported_answerer, restore_answerer, with_features
from jaxvlm.generation.see import encoder
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import VLM, abstract_vlm, vlm_config
from jaxvlm.paths import unflatten
from jaxvlm.training.checkpoints import restore_params
from jaxvlm.training.features import cache_features
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.run import find_checkpoint, run_config, run_parameters


@pytest.fixture(scope="module")
def answerer(finished_run):
    folder = find_checkpoint(finished_run)
    return restore_answerer(folder, run_config(folder, []))


@pytest.fixture(scope="module")
def asked(records):
    """Twelve questions about six sets: with and without geometry, situation, second view."""
    return load_sources([{"path": str(records)}], (".",), "error")[0].records


@pytest.fixture(scope="module")
def colours_asked(answerer):
    path = answerer.config.data.train[0]["path"]
    return list(load_sources([{"path": path}], (".",), "error")[0].records)


def uncached(answerer, record) -> list[int]:
    """A greedy answer by running the model as in training, anew for every token."""
    model_config, config = vlm_config(answerer.config.model), answerer.config
    params = run_parameters(answerer.checkpoint, config, make_mesh(-1, -1))
    model = load(abstract_vlm(model_config), unflatten(params))
    sets = answerer.reader.empty(1)
    answerer.reader.read(sets, 0, record, range(len(record.images)))
    visual = model.encode(sets["images"], sets["view_counts"], sets["geometry"])
    geometry = answerer.reader.has_geometry(record)
    ((sample,), _) = prompts(answerer, [record])
    shown = answerer.layout.index(len(record.images), geometry)
    tokens, index = prompt(sample, shown, answerer.tokenizer.placeholder_id)
    made = []
    while len(made) < config.evaluation.max_new_tokens:
        places = jnp.arange(len(tokens))[None]
        x = model.embed(tokens[None], index[None], visual)
        logits = model.language.logits(model.language(x, places, jnp.ones_like(places)))
        made.append(int(logits[0, -1, : answerer.tokenizer.placeholder_id].argmax()))
        if made[-1] == answerer.tokenizer.end_id:
            return made[:-1]
        tokens, index = np.append(tokens, made[-1]), np.append(index, -1)
    return made


@pytest.mark.slow
def test_answers_are_those_of_the_training_pass(answerer, asked):
    """Ragged prompts; two views' geometry tokens, one view's, or none."""
    texts = answer_records(answerer, asked)
    assert len(set(texts)) > 2
    for record, text in list(zip(asked, texts, strict=True))[::3]:
        assert answerer.tokenizer.decode(uncached(answerer, record)) == text


@pytest.mark.slow
def test_a_conversation_encodes_no_more_than_its_image_set(answerer, asked, monkeypatch):
    seen = []

    def encode(self, images, *others, of=VLM.encode, **more):
        seen.append(images.shape[:2])
        return of(self, images, *others, **more)

    monkeypatch.setattr(VLM, "encode", encode)
    mesh = make_mesh(-1, -1)
    params = run_parameters(answerer.checkpoint, answerer.config, mesh)
    params = {path: leaf for path, leaf in params.items() if not path.startswith("language/")}
    own = dataclasses.replace(
        answerer, encode=encoder(vlm_config(answerer.config.model), params, mesh)
    )
    alone = next(record for record in asked if len(record.images) == 1)
    *_, text = Conversation(own, alone).stream(alone)
    assert seen == [(1, 1)]
    assert text == answer_records(answerer, [alone])[0]


def test_sets_are_seen_alike_beside_sets_of_more_views(answerer, asked):
    alone = next(record for record in asked if len(record.images) == 1)
    more = next(record for record in asked if len(record.images) > 1)
    found = []
    for beside in (alone, more):
        sets = answerer.reader.empty(2 * answerer.devices)
        for place, record in enumerate((alone, beside)):
            answerer.reader.read(sets, place, record, range(len(record.images)))
        found.append(answerer.encode(sets)[0])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_reserved_ids_never_come_out(answerer, asked):
    """Whatever the hidden state, one of the two scores lies far above everything else."""
    reserved = answerer.tokenizer.placeholder_id
    engine = answerer.engine
    table = np.asarray(engine._weights.embedding).copy()
    table[reserved], table[reserved + 1 :] = 50.0, -50.0
    weights = engine._weights._replace(embedding=jnp.asarray(table))
    other = dataclasses.replace(answerer, engine=Engine(engine._program, weights, 4))
    samples, _ = prompts(other, asked)
    groups = [Group(asked[0], [Asked(i, i, record) for i, record in enumerate(asked)])]
    assert len(list(answers(other, groups))) == len(samples)
    tokens = np.asarray(other.engine._state.tokens)
    rows = np.asarray(other.engine._state.lengths)
    assert all(tokens[row, rows[row] - 1] < reserved for row in range(len(rows)))


def test_what_was_learnt_is_answered(answerer, colours_asked):
    assert answer_records(answerer, colours_asked) == list(tiny.COLOURS)


@pytest.mark.slow
def test_what_was_learnt_is_answered_in_bfloat16_too(answerer, colours_asked):
    config = run_config(answerer.checkpoint, ["precision=bfloat16"])
    half = restore_answerer(answerer.checkpoint, config)
    assert half.engine._weights.embedding.dtype == jnp.bfloat16
    assert answer_records(half, colours_asked) == list(tiny.COLOURS)


def test_a_conversation_sees_its_images_once(answerer, colours_asked):
    seen = []
    watched = dataclasses.replace(
        answerer, encode=lambda sets: seen.append(sets) or answerer.encode(sets)
    )
    about = Conversation(watched, colours_asked[1])
    for _ in range(2):
        *before, last = about.stream(colours_asked[1])
        assert last == list(tiny.COLOURS)[1] and all(last.startswith(part) for part in before)
    assert len(seen) == 1


def test_a_set_with_more_questions_than_are_read_together_is_seen_once(
    answerer, colours_asked, monkeypatch
):
    monkeypatch.setattr(answer, "_TOGETHER", 2)
    seen = []
    watched = dataclasses.replace(
        answerer, encode=lambda sets: seen.append(sets) or answerer.encode(sets)
    )
    found = answer_records(watched, [colours_asked[1]] * 5)
    assert found == [list(tiny.COLOURS)[1]] * 5 and len(seen) == 1


def test_answers_are_drawn_as_the_configuration_says(answerer, colours_asked):
    """Made anew of a run, hot enough to forget what was learnt."""
    texts = []
    for seed in (0, 0, 1):
        config = answerer.config.copy_and_resolve_references()
        config.evaluation.sampling.update({"temperature": 50.0, "seed": seed})
        texts.append(answer_records(restore_answerer(answerer.checkpoint, config), colours_asked))
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] != list(tiny.COLOURS)


def test_other_images_give_other_answers(answerer, colours_asked):
    order = other_scenes([scene_of(record) for record in colours_asked], 0)
    shown = [colours_asked[place] for place in order]
    # The same question of every scene: the answer is the colour of what is shown.
    assert answer_records(answerer, colours_asked, shown) == [record.answer for record in shown]


def test_without_an_image_all_are_answered_alike(answerer, colours_asked):
    group = Group(None, [Asked(i, i, record) for i, record in enumerate(colours_asked)])
    texts = [each.text for each in answers(answerer, [group])]
    assert len(texts) == len(colours_asked) and len(set(texts)) == 1


def test_the_batch_size_does_not_change_the_answers(answerer, asked):
    together = answer_records(answerer, asked)
    for sets, questions in ((1, 1), (2, 5), (6, 12)):
        config = answerer.config.copy_and_resolve_references()
        config.evaluation.batch_sets = sets
        engine = Engine(answerer.engine._program, answerer.engine._weights, questions)
        other = dataclasses.replace(answerer, config=config, engine=engine)
        assert answer_records(other, asked) == together


def test_images_that_vanish_stop_it_or_leave_their_questions_out(answerer, colours_asked):
    gone = dataclasses.replace(colours_asked[2], images=("gone.png",))
    groups = [
        Group(record, [Asked(i, i, record)])
        for i, record in enumerate([*colours_asked[:2], gone, *colours_asked[3:]])
    ]
    with pytest.raises(UserError, match=r"gone\.png"):
        list(answers(answerer, groups))
    config = answerer.config.copy_and_resolve_references()
    config.data.on_bad_record = "skip"
    found = {
        each.key: each for each in answers(dataclasses.replace(answerer, config=config), groups)
    }
    assert sorted(found) == list(range(len(groups)))
    assert found[2].text is None and "gone.png" in found[2].lost
    assert found[3].text == list(tiny.COLOURS)[3]
    # A single answer has nothing to go on with.
    with pytest.raises(UserError, match=r"gone\.png"):
        Conversation(dataclasses.replace(answerer, config=config), gone)


def test_numbers_that_are_not_finite_are_a_damaged_checkpoint(tmp_path):
    whole, damaged = np.ones((2, 3), np.float32), np.array([1, np.nan, 2], np.float32)
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "7" / "params", {"a": {"kernel": whole}, "b": {"bias": damaged}})
    wanted = {
        path: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=jnp.zeros(1).sharding)
        for path, like in (("a/kernel", whole), ("b/bias", damaged))
    }
    with pytest.raises(UserError, match=r"7 holds numbers that are not finite in 'b/bias'"):
        restore_params(tmp_path / "7", wanted)


def test_the_best_update_must_be_whole(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    meta = tmp_path / "run" / "checkpoints" / "40" / "meta" / "metadata"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "score": 0.5}))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40" / "params")
    with pytest.raises(UserError, match=r"update 40, the best .* no 'params'; name another \(80\)"):
        find_checkpoint(tmp_path / "run")


def test_a_workdir_means_its_newest_complete_update(finished_run, tmp_path, capsys):
    newest = finished_run / "checkpoints" / "80"
    assert find_checkpoint(finished_run) == newest
    assert find_checkpoint(newest) == newest
    (tmp_path / "checkpoints" / "7" / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "9").mkdir()
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "7"
    assert "update 9 of" in (said := capsys.readouterr().err) and "incomplete; 7 is taken" in said


def test_an_older_update_can_be_asked_for(finished_run):
    folder = finished_run / "checkpoints" / "40"
    assert restore_answerer(folder, run_config(folder, [])).checkpoint == folder


def test_imported_weights_answer_when_all_are_named(answerer, monkeypatch, asked):
    config = answerer.config.copy_and_resolve_references()
    with pytest.raises(UserError, match=r"model\.\w+\.weights is None; name them"):
        imported_answerer(config)
    for part in ("vision", "projector", "geometry", "language"):
        config.model[part].weights = "imported"
    made = run_parameters(answerer.checkpoint, answerer.config, make_mesh(-1, -1))
    monkeypatch.setattr(restore, "check_weights", lambda model, parts: None)
    monkeypatch.setattr(restore, "all_parameters", lambda *_: dict(made))
    assert answer_records(imported_answerer(config), asked) == answer_records(answerer, asked)


def test_features_answer_as_images_do(answerer, colours_asked, tmp_path):
    """Those that a cache was filled with for evaluation, in float32."""
    config = answerer.config.copy_and_resolve_references()
    config.data.features.folder, config.data.features.dtype = str(tmp_path / "f"), "float32"
    config.evaluation.features = True
    seeing = dataclasses.replace(answerer, config=config)
    sets = {record.images for record in colours_asked}
    with pytest.raises(UserError, match="holds no feature cache"):
        with_features(seeing, sets)
    path = str(answerer.config.data.train[0]["path"])
    cache_features(config, 2, files=[path])
    cached = with_features(seeing, sets)
    assert isinstance(cached.reader, FeatureReader)
    assert answer_records(cached, colours_asked) == list(tiny.COLOURS)
    with pytest.raises(UserError, match="lacks 1 of 2 image sets"):
        mixed = (colours_asked[0].images[0], colours_asked[2].images[0])
        with_features(seeing, {colours_asked[0].images, mixed})
