"""How questions are asked: as they are, and as controls without the right pictures."""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxvlm.data.record import Record, scene_of
from jaxvlm.data.sequence import set_key
from jaxvlm.data.sources import Chosen
from jaxvlm.errors import UserError
from jaxvlm.generation.answer import Asked, Group
from jaxvlm.generation.controls import other_scenes
from jaxvlm.shares import Share

ANSWERS, ACTIONS = "answers", "actions"
WAYS = AS_THEY_ARE, NO_IMAGE, OTHER_IMAGES, NO_GEOMETRY = (
    "", "no_image", "other_images", "no_geometry")  # fmt: skip


class Places(NamedTuple):
    """Questions about one image set by their numbers, for records are parsed only when it is read.

    Attributes:
      shown: the record whose images are shown; None for no images.
      asked: way and number of each question.
    """

    shown: int | None
    asked: list[tuple[str, int]]


def of_task(records: Sequence[Record], task: str | None) -> Sequence[Record]:
    """The questions among records, or the instructions.

    Raises:
      UserError: there are none; or no task was named, and there are both.
    """
    found: dict[str, list[int]] = {ANSWERS: [], ACTIONS: []}
    for index in range(len(records)):
        found[ACTIONS if records[index].is_action else ANSWERS].append(index)
    if task is None and all(found.values()):
        raise UserError(
            f"the files hold {len(found[ANSWERS]):,} questions and {len(found[ACTIONS]):,} "
            "instructions, which have other figures: give --task answers or --task actions"
        )
    if task is None:
        return records
    if not found[task]:
        other = "an instruction" if task == ANSWERS else "a question"
        raise UserError(f"--task {task}: every record is {other}")
    return Chosen(records, found[task])


@dataclasses.dataclass(frozen=True)
class Ways:
    """Which images are shown with which question, in each way of asking.

    Attributes:
      records: all of the files' of the task, parsed when they are asked for.
      task: "answers" or "actions".
      count: how many of them, from the first, are asked about.
      controls: whether the questions are also asked without picture and with others'.
      seed: of the scenes' exchange.
      located: whether the model is told where cameras stood.
    """

    records: Sequence[Record]
    task: str
    count: int
    controls: bool
    seed: int
    located: bool = True

    @functools.cached_property
    def shown(self) -> Mapping[str, list[int] | None]:
        """By way, for each question the record whose images are shown; None for no images."""
        own = list(range(self.count))
        if not self.controls:
            return {AS_THEY_ARE: own}
        # Of all records: which are shown does not depend on how many are asked about.
        scenes = [scene_of(self.records[index]) for index in range(len(self.records))]
        other = other_scenes(scenes, self.seed)
        found: dict[str, list[int] | None] = {AS_THEY_ARE: own, NO_IMAGE: None}
        found |= {OTHER_IMAGES: other[: self.count]} if other else {}
        # Where nothing is known of cameras, nothing can be left out.
        told = self.located and any(record.geometry is not None for record in self.asked())
        return found | ({NO_GEOMETRY: own} if told and self.task == ACTIONS else {})

    def __iter__(self) -> Iterator[str]:
        """The ways' names."""
        return iter(self.shown)

    def asked(self) -> Iterator[Record]:
        """The records that are asked about, parsed one after the other."""
        return (self.records[index] for index in range(self.count))

    def image_sets(self) -> set[tuple[str, ...]]:
        """Those that are shown."""
        return {self.records[index].images for index in self._seen()}

    def places(self, done: Mapping[str, Collection[int]], share: Share) -> list[Places]:
        """What a share still has to ask, after what is `done` in each way."""
        keys = {index: set_key(self.records[index]) for index in self._seen()}
        first: dict[bytes, int] = {}
        for index, key in keys.items():
            first.setdefault(key, index)
        by_set: dict[int | None, list[tuple[str, int]]] = {}
        for way, shown in self.shown.items():
            for index in range(self.count):
                about = first[keys[shown[index]]] if shown else None
                by_set.setdefault(about, []).append((way, index))
        found = []
        for number, (about, asked) in enumerate(by_set.items()):
            if about is None:
                asked = share.of(asked)
            elif not share.owns(number):
                continue
            left = [(way, index) for way, index in asked if index not in done[way]]
            found += [Places(about, left)] if left else []
        return found

    def groups(self, places: Iterable[Places]) -> Iterator[Group]:
        """The questions themselves, whose keys are `(way, index)`, a group at a time."""
        for shown, asked in places:
            questions = (
                Asked((way, index), index, self.records[index], way == NO_GEOMETRY)
                for way, index in asked
            )
            yield Group(None if shown is None else self.records[shown], questions)

    def _seen(self) -> list[int]:
        """Records whose images are shown; controls may show some that are not asked about."""
        return sorted({index for shown in self.shown.values() for index in shown or ()})
