"""Splitting records into train and test: by scene, alike in kind, duplicates removed first."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvlm.data.audit.checks import room_of
from jaxvlm.data.audit.duplicates import row_key
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

# SQA3D's types, by the first word of the question.
_FIRST_WORDS = ("what", "is", "how", "can", "which")

Place = tuple[int, int]


def stratum(record: Record) -> str:
    """What train and test shall have alike: task and kind of question."""
    kind = record.kind
    if kind in ("", record.task):
        first = record.question.lower().split()[0]
        kind = next((word for word in _FIRST_WORDS if first.startswith(word)), "other")
    return f"{record.task} {kind}".strip()


def split_by_scene(
    files: Sequence[RecordFile], test_ratio: float, seed: int, known: Mapping[str, str]
) -> tuple[list[Place], list[Place], Counter]:
    """Divides records so that no room is on both sides.

    Args:
      files: the records.
      test_ratio: share of the records that go to test.
      seed: of the order in which rooms of one size are dealt.
      known: rooms of scenes, see `room_of`.

    Rooms are dealt one by one, largest first, to where they bring both sides closest to the wanted
    share of every kind of question.

    Returns:
      Places (file, index) of train and of test, in the files' order, and counts of what happened.

    Raises:
      UserError: a record without scene_id, or fewer than two rooms.
    """
    if not 0 < test_ratio < 1:
        raise UserError(f"--test-ratio {test_ratio}: expected a number between 0 and 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected at least 0")
    rooms: dict[str, list[tuple[Place, str]]] = {}
    seen: set[bytes] = set()
    counts = Counter()
    for number, file in enumerate(files):
        for index in range(len(file)):
            record = file[index]
            key = row_key(record)
            if key in seen:
                counts["duplicates removed"] += 1
                continue
            seen.add(key)
            if not record.scene_id:
                raise UserError(f"{record.origin}: splitting by scene needs a 'scene_id'")
            rooms.setdefault(room_of(record.scene_id, known), []).append(
                ((number, index), stratum(record))
            )
    if len(rooms) < 2:
        raise UserError(f"splitting by scene needs at least two rooms, found {len(rooms)}")
    test_rooms = _choose(rooms, test_ratio, seed)
    counts["rooms in train"] = len(rooms) - len(test_rooms)
    counts["rooms in test"] = len(test_rooms)
    train, test = [], []
    for room, members in rooms.items():
        (test if room in test_rooms else train).extend(place for place, _ in members)
    return sorted(train), sorted(test), counts


def _choose(rooms: dict[str, list[tuple[Place, str]]], ratio: float, seed: int) -> set[str]:
    strata = sorted({name for members in rooms.values() for _, name in members})
    column = {name: i for i, name in enumerate(strata)}
    names = sorted(rooms)
    table = np.zeros((len(names), len(strata)))
    for row, name in enumerate(names):
        for _, kind in rooms[name]:
            table[row, column[kind]] += 1
    total = table.sum(0)
    # In shares of a kind, so that rare kinds weigh as much as common ones; rows as one more.
    shares = np.concatenate([table / total, table.sum(1, keepdims=True) / total.sum()], axis=1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    test, rest = np.zeros(shares.shape[1]), np.zeros(shares.shape[1])
    chosen: set[str] = set()
    for number, row in enumerate(order):
        dealt = test + rest + shares[row]
        off_test = np.square(test + shares[row] - ratio * dealt).sum()
        off_train = np.square(test - ratio * dealt).sum()
        last = number == len(order) - 1
        # The last room goes where there is none yet.
        to_test = not chosen if last and len(chosen) in (0, number) else off_test < off_train
        if to_test:
            chosen.add(names[row])
            test = test + shares[row]
        else:
            rest = rest + shares[row]
    return chosen
