"""Answers questions about image sets: each is seen once, its questions are answered as they fit."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxvlm.console import say
from jaxvlm.data.actions.constraint import Constraint
from jaxvlm.data.readers import LostImage
from jaxvlm.data.record import Record
from jaxvlm.data.sequence import Sample, prompt, tokenize
from jaxvlm.generation.engine import Request
from jaxvlm.generation.restore import Answerer

# Threads that read images while others are answered.
_READERS = 4
# Questions that are tokenised together.
_TOGETHER = 512


class Asked(NamedTuple):
    """A question.

    Attributes:
      key: what its answer comes back with.
      serial: a number, on which a drawn answer depends.
      record: has the question.
      unlocated: it is not told what is known of the cameras.
    """

    key: Hashable
    serial: int
    record: Record
    unlocated: bool = False


class Group(NamedTuple):
    """Questions about one image set.

    Attributes:
      shown: a record with that set; None for questions without any picture.
      asked: the questions, gone through once.
    """

    shown: Record | None
    asked: Iterable[Asked]


class Text(NamedTuple):
    """An answer.

    Attributes:
      key: of the question.
      text: what was answered; None where its images could not be read.
      lost: why they could not.
      tokens: of the answer.
      ended: whether it came to its end, rather than to its limit.
      seconds: that it took, beside others.
      box: what the action head made of the question; None without a head.
    """

    key: Hashable
    text: str | None
    lost: str = ""
    tokens: int = 0
    ended: bool = False
    seconds: float = 0.0
    box: Float[np.ndarray, "9"] | None = None


def answers(answerer: Answerer, groups: Iterable[Group]) -> Iterator[Text]:
    """The answers to all questions, as they come to their end.

    Images that cannot be read stop it, or leave their questions without an answer, as
    `data.on_bad_record` says.
    """
    lost: list[Text] = []
    for answer in answerer.engine.run(_requests(answerer, groups, lost)):
        text = answerer.tokenizer.decode(answer.tokens)
        size = len(answer.tokens)
        yield Text(answer.key, text, "", size, answer.ended, answer.seconds, answer.box)
        yield from _emptied(lost)
    yield from _emptied(lost)


class Conversation:
    """Questions about one image set, one after the other; it is read and encoded once."""

    def __init__(self, answerer: Answerer, shown: Record):
        """Encodes the image set of a record.

        Raises:
          UserError: an image cannot be read, whatever `data.on_bad_record` says.
        """
        sets = answerer.reader.empty(answerer.devices)
        answerer.reader.read(sets, 0, shown, range(_views(answerer, shown)))
        self._answerer, self._shown = answerer, shown
        self._visual = answerer.encode(sets)[0]

    def stream(self, record: Record) -> Iterator[str]:
        """The answer to a record's question as far as it is known, longer and longer."""
        asked = [Asked(0, 0, record)]
        (request,), shortened = _asked(self._answerer, self._shown, asked, self._visual)
        _say_shortened(self._answerer, shortened)
        for tokens in self._answerer.engine.stream(request):
            yield self._answerer.tokenizer.decode(tokens)


def prompts(answerer: Answerer, records: Iterable[Record]) -> tuple[list[Sample], int]:
    """Tokenises the records' questions without their answers; counts those that were shortened."""
    records = [dataclasses.replace(record, answer="") for record in records]
    config = answerer.config
    most = len(answerer.layout.index(config.data.num_views, True))
    return tokenize(records, answerer.tokenizer, config.text.template, config.text.max_length, most)


def _requests(answerer: Answerer, groups: Iterable[Group], lost: list[Text]) -> Iterator[Request]:
    """The engine's requests; questions whose images are lost go to `lost` instead."""
    size = answerer.config.evaluation.batch_sets * answerer.devices
    shortened = 0
    for chunk, sets in _read_ahead(answerer, _chunks(groups, size)):
        visual = answerer.encode(sets)
        for place, group in enumerate(chunk):
            if isinstance(group.shown, LostImage):
                lost += [Text(each.key, None, str(group.shown)) for each in group.asked]
                continue
            for asked in _chunks(group.asked, _TOGETHER):
                requests, cut = _asked(answerer, group.shown, asked, visual[place])
                shortened += cut
                yield from requests
    _say_shortened(answerer, shortened)


def _asked(
    answerer: Answerer,
    shown: Record | None,
    asked: Sequence[Asked],
    visual: Float[np.ndarray, "M D"],
) -> tuple[list[Request], int]:
    """The requests about an image set, which has been encoded; counts those shortened."""
    indices = {False: np.zeros(0, np.int32), True: np.zeros(0, np.int32)}
    if shown is not None:
        views, known = _views(answerer, shown), answerer.reader.has_geometry(shown)
        indices = {
            without: answerer.layout.index(views, known and not without) for without in indices
        }
    samples, shortened = prompts(answerer, (each.record for each in asked))
    requests = []
    for each, sample in zip(asked, samples, strict=True):
        index = indices[each.unlocated]
        tokens = prompt(sample, index, answerer.tokenizer.placeholder_id)
        most, constraint = _bounds(answerer, each.record)
        requests.append(Request(each.key, each.serial, *tokens, visual, most, constraint))
    return requests, shortened


def _say_shortened(answerer: Answerer, count: int) -> None:
    if count:
        most = answerer.config.text.max_length
        say(
            f"warning: {count:,} question{'s' * (count != 1)} lost the end, for the model reads "
            f"text.max_length={most} tokens; ask shorter ones",
            warns=True,
        )


def _bounds(answerer: Answerer, record: Record) -> tuple[int, Constraint | None]:
    """How long an answer may be, and what it may be made of."""
    most = answerer.config.evaluation.max_new_tokens
    if not (record.is_action and answerer.config.evaluation.constrain_actions):
        return most, None
    constraint = answerer.constraints.of(record.scene_id)
    # Its form ends it.
    return constraint.longest or most, constraint


def _read_ahead(
    answerer: Answerer, chunks: Iterator[list[Group]]
) -> Iterator[tuple[list[Group], dict[str, np.ndarray]]]:
    """Chunks and what their image sets hold; the next one is read meanwhile."""
    with ThreadPoolExecutor(_READERS) as pool:

        def begin() -> tuple[list[Group], dict, list[Future]] | None:
            chunk = next(chunks, None)
            if chunk is None:
                return None
            sets = answerer.reader.empty(answerer.config.evaluation.batch_sets * answerer.devices)
            reads = [
                pool.submit(_read, answerer, sets, place, group.shown)
                for place, group in enumerate(chunk)
            ]
            return chunk, sets, reads

        coming = begin()
        while coming:
            chunk, sets, reads = coming
            coming = begin()
            seen = [read.result() for read in reads]
            yield [Group(shown, g.asked) for shown, g in zip(seen, chunk, strict=True)], sets


def _read(answerer: Answerer, sets, place: int, shown: Record | None) -> Record | LostImage | None:
    """Reads a set into its place; gives back what is shown, or why it cannot be."""
    if shown is None:
        return None
    try:
        answerer.reader.read(sets, place, shown, range(_views(answerer, shown)))
    except LostImage as error:
        if answerer.config.data.on_bad_record != "skip":
            raise
        return error
    return shown


def _views(answerer: Answerer, record: Record) -> int:
    return min(len(record.images), answerer.config.data.num_views)


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def _emptied(lost: list[Text]) -> Iterator[Text]:
    while lost:
        yield lost.pop()
