"""Greedy decoding against the model run without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvlm.data.sequence import prompt
from jaxvlm.data.sources import load_sources
from jaxvlm.generation.answer import answer_records, other_images, prompts
from jaxvlm.generation.decode import greedy
from jaxvlm.generation.restore import restore_answerer
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import abstract_vlm
from jaxvlm.paths import unflatten
from jaxvlm.training.run import find_checkpoint, run_config

NEW = 6


@pytest.fixture(scope="module")
def answerer(finished_run):
    folder = find_checkpoint(finished_run)
    return restore_answerer(folder, run_config(folder, []))


@pytest.fixture(scope="module")
def asked(records):
    """Twelve questions about six sets: with and without geometry, situation, second view."""
    return load_sources([{"path": str(records)}], (".",), "error")[0].records


@pytest.fixture(scope="module")
def prepared(answerer, asked, toy):
    """Prompts of all questions as one padded batch, and their sets' visual vectors."""
    sets = {}
    for record in asked:
        sets.setdefault(record.images, record)
    views = {images: len(images) for images in sets}
    read = answerer.reader.empty(len(sets))
    for place, record in enumerate(sets.values()):
        answerer.reader.read(read, place, record, range(views[record.images]))
    visual = answerer.generator.encode(read)
    samples = prompts(answerer, asked)
    made = [
        prompt(
            sample,
            answerer.layout.index(views[record.images], answerer.reader.has_geometry(record)),
            answerer.tokenizer.placeholder_id,
        )
        for sample, record in zip(samples, asked, strict=True)
    ]
    which = [list(sets).index(record.images) for record in asked]
    return made, visual[jnp.asarray(which)]


def padded(made):
    length = max(len(tokens) for tokens, _ in made)
    tokens = np.zeros((len(made), length), np.int32)
    index = np.full((len(made), length), -1, np.int32)
    for row, (ids, places) in enumerate(made):
        tokens[row, : len(ids)], index[row, : len(ids)] = ids, places
    return tokens, index, np.array([len(ids) for ids, _ in made], np.int32)


@pytest.fixture(scope="module")
def decode(toy, answerer):
    """`(params, made, visual) -> answers' token ids`, with the cache."""
    abstract, tokenizer = abstract_vlm(toy.model), answerer.tokenizer

    @jax.jit
    def function(params, tokens, index, lengths, visual):
        model = load(abstract, unflatten(params))
        x = model.embed(tokens, index, visual)
        return greedy(model, x, lengths, NEW, tokenizer.end_id, tokenizer.placeholder_id)

    def call(params, made, visual):
        tokens, index, lengths = padded(made)
        return np.asarray(function(params, tokens, index, lengths, visual))

    return call


@pytest.fixture(scope="module")
def next_logits(toy):
    """`(params, tokens, index, visual) -> logits [B, T, W]`: the plain forward pass."""
    abstract = abstract_vlm(toy.model)

    @jax.jit
    def function(params, tokens, index, visual):
        model = load(abstract, unflatten(params))
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # What follows the token looked at is never seen: attention is causal.
        hidden = model.language(model.embed(tokens, index, visual), places, jnp.ones_like(places))
        return model.language.logits(hidden)

    return function


def uncached(answerer, next_logits, params, made, visual):
    """Greedy answers by running the whole sequence anew for every token."""
    tokens, index, lengths = padded(made)
    tokens = np.pad(tokens, [(0, 0), (0, NEW)])
    index = np.pad(index, [(0, 0), (0, NEW)], constant_values=-1)
    rows = np.arange(len(made))
    out = np.full((len(made), NEW), answerer.tokenizer.end_id, np.int32)
    for count in range(NEW):
        logits = np.asarray(next_logits(params, tokens, index, visual))
        chosen = logits[rows, lengths + count - 1, : answerer.tokenizer.placeholder_id].argmax(-1)
        out[:, count] = tokens[rows, lengths + count] = chosen
    return out


def up_to_end(ids, end):
    ends = np.nonzero(ids == end)[0]
    return ids[: ends[0] + 1].tolist() if len(ends) else ids.tolist()


@pytest.mark.parametrize("which", ["trained", "random"])
def test_cached_answers_are_the_uncached_ones(which, toy, answerer, prepared, decode, next_logits):
    made, visual = prepared
    params = answerer.generator.params if which == "trained" else {**toy.frozen, **toy.trained}
    lengths = {len(tokens) for tokens, _ in made}
    shown = {int((index >= 0).sum()) for _, index in made}
    # Ragged prompts; two views' geometry tokens, one view's, or none.
    assert len(lengths) > 2 and shown == {4, 6}
    cached = decode(params, made, visual)
    expected = uncached(answerer, next_logits, params, made, visual)
    end = answerer.tokenizer.end_id
    assert [up_to_end(row, end) for row in cached] == [up_to_end(row, end) for row in expected]
    assert len({tuple(row) for row in expected.tolist()}) > 1


def test_reserved_ids_never_come_out(toy, answerer, prepared, decode, next_logits):
    made, visual = prepared
    reserved = answerer.tokenizer.placeholder_id
    params = {**toy.frozen, **toy.trained}
    path = "language/embed_tokens/embedding"
    table = np.asarray(params[path]).copy()
    # Whatever the hidden state, one of the two scores far above everything else.
    table[reserved], table[reserved + 1 :] = 50.0, -50.0
    params[path] = jnp.asarray(table)
    tokens, index, lengths = padded(made)
    logits = np.asarray(next_logits(params, tokens, index, visual))
    assert (logits[np.arange(len(made)), lengths - 1].argmax(-1) >= reserved).all()
    assert decode(params, made, visual).max() < reserved


def test_an_answer_ends_at_the_end_token(toy, answerer, prepared, decode):
    made, visual = prepared
    tokenizer = answerer.tokenizer
    ids = decode(answerer.generator.params, made, visual)
    assert (ids == tokenizer.end_id).any(1).all()
    red = tokenizer.encode(["red"])[0]
    texts = np.array([*red, tokenizer.end_id, *red, *red])
    assert answerer.generator._text(texts) == "red"
    assert answerer.generator._text(np.array([tokenizer.end_id, *red])) == ""
    assert answerer.generator._text(np.array(red)) == "red"


def test_what_was_learnt_is_answered(answerer, finished_run):
    path = answerer.config.data.train[0]["path"]
    colours = load_sources([{"path": path}], (".",), "error")[0].records
    assert answer_records(answerer, colours) == list(tiny.COLOURS)


def test_other_images_give_other_answers(answerer):
    path = answerer.config.data.train[0]["path"]
    colours = load_sources([{"path": path}], (".",), "error")[0].records
    shown = other_images(colours, 0)
    assert all(a.scene_id != b.scene_id for a, b in zip(colours, shown, strict=True))
    # The same question of every scene: the answer is the colour of what is shown.
    assert answer_records(answerer, colours, shown) == [record.answer for record in shown]


def test_the_batch_size_does_not_change_the_answers(answerer, asked):
    together = answer_records(answerer, asked)
    assert len(set(together)) > 2
    for sets, questions in ((1, 1), (2, 5), (6, 12)):
        config = answerer.config.copy_and_resolve_references()
        config.evaluation.batch_sets, config.evaluation.batch_questions = sets, questions
        other = dataclasses.replace(answerer, config=config)
        counted = []
        assert answer_records(other, asked, None, counted.append) == together
        assert sum(counted) == len(asked)


def test_a_workdir_means_its_newest_complete_update(finished_run, tmp_path):
    newest = finished_run / "checkpoints" / "80"
    assert find_checkpoint(finished_run) == newest
    assert find_checkpoint(newest) == newest
    (tmp_path / "checkpoints" / "7" / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "9").mkdir()
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "7"


def test_an_older_update_can_be_asked_for(finished_run):
    folder = finished_run / "checkpoints" / "40"
    assert restore_answerer(folder, run_config(folder, [])).checkpoint == folder


def test_rows_of_padding_do_not_keep_a_batch_going(answerer, prepared, decode):
    made, visual = prepared
    params = answerer.generator.params
    alone = decode(params, made, visual)
    # Every answer has ended before the last step: what is behind stays as it was put there.
    assert (alone[:, -1] == answerer.tokenizer.end_id).all()
    nothing = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    more = jnp.concatenate([visual, visual[:2]])
    np.testing.assert_array_equal(decode(params, [*made, nothing, nothing], more)[:-2], alone)
