"""Answers many records: every image set is encoded once, its questions are answered in batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from jaxvlm.data.record import Record
from jaxvlm.data.sequence import Sample, set_key, tokenize
from jaxvlm.data.views import say_cut_views
from jaxvlm.generation.restore import Answerer


def prompts(answerer: Answerer, records: Sequence[Record]) -> list[Sample]:
    """Tokenises the records' questions without their answers; says how many were shortened."""
    records = [dataclasses.replace(record, answer="") for record in records]
    config = answerer.config
    most = len(answerer.layout.index(config.data.num_views, True))
    samples, shortened = tokenize(
        records, answerer.tokenizer, config.text.template, config.text.max_length, most
    )
    if shortened:
        print(f"{shortened} of {len(samples)} questions were shortened to text.max_length")
    return samples


def answer_records(
    answerer: Answerer,
    records: Sequence[Record],
    shown: Sequence[Record] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """The greedy answer to every record's question.

    Args:
      answerer: the trained model.
      records: the questions.
      shown: for each record the one whose images are shown instead of its own.
      advance: called with the number of answers that came in.
    """
    shown = records if shown is None else shown
    samples = prompts(answerer, records)
    settings = answerer.config.evaluation
    say_cut_views([len(record.images) for record in shown], answerer.config.data.num_views)
    by_set: dict[bytes, list[int]] = {}
    for index, record in enumerate(shown):
        by_set.setdefault(set_key(record), []).append(index)
    answers = [""] * len(records)
    for group in _chunks(list(by_set.values()), settings.batch_sets):
        views, visual = _encode(answerer, [shown[members[0]] for members in group])
        asked = [(set_index, i) for set_index, members in enumerate(group) for i in members]
        for batch in _chunks(asked, settings.batch_questions):
            texts = answerer.generator.answer(
                visual,
                [s for s, _ in batch],
                [samples[i] for _, i in batch],
                [views[s] for s, _ in batch],
                [answerer.reader.has_geometry(shown[i]) for _, i in batch],
                settings.batch_questions,
            )
            for (_, i), text in zip(batch, texts, strict=True):
                answers[i] = text
            advance(len(batch))
    return answers


def _encode(answerer: Answerer, records: Sequence[Record]) -> tuple[list[int], jnp.ndarray]:
    """Kept views and visual vectors of image sets, padded to the batch size."""
    most = answerer.config.data.num_views
    views = [min(len(record.images), most) for record in records]
    sets = answerer.reader.empty(answerer.config.evaluation.batch_sets)
    for place, (record, count) in enumerate(zip(records, views, strict=True)):
        answerer.reader.read(sets, place, record, range(count))
    return views, answerer.generator.encode(sets)


def other_images(records: Sequence[Record], seed: int) -> list[Record] | None:
    """For each record one of another scene: scenes change places, none keeps its own.

    Returns None where all records are of one scene.
    """
    by_scene: dict[str, list[Record]] = {}
    for record in records:
        by_scene.setdefault(record.scene_id or record.images[0], []).append(record)
    scenes = list(by_scene)
    if len(scenes) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(scenes))
    following = {scenes[a]: scenes[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
    places: dict[str, int] = {}
    shown = []
    for record in records:
        scene = record.scene_id or record.images[0]
        there = by_scene[following[scene]]
        place = places.get(scene, 0)
        places[scene] = place + 1
        shown.append(there[place % len(there)])
    return shown


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
