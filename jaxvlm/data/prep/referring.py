"""Saying which thing is meant: phrases that fit one box of a scene and no other."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.data.boxes import OBJECT, Box

# A thing is nearer or larger than another where it is so by this much and by this share.
_METRES, _SHARE = 0.15, 0.1
# What a phrase speaks of that depends on the views.
VIEWPOINT = "the first camera"
_ORDINALS = tuple(
    f"{word} ".lstrip()
    for word in (
        *("", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
        *("tenth", "eleventh", "twelfth"),
    )
)
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}


@dataclasses.dataclass(frozen=True)
class Phrase:
    """How a box can be named.

    Attributes:
      kind: "category", "attribute", "size", "relation" or "order".
      text: with its article: "the chair nearest to the bed".
      others: names of the boxes that it speaks of besides.
    """

    kind: str
    text: str
    others: tuple[str, ...] = ()


def phrases(boxes: Sequence[Box], viewpoint: Float[np.ndarray, "3"]) -> dict[str, list[Phrase]]:
    """Every phrase for each box, the plainest first; every box has at least one.

    Args:
      boxes: all things of the scene that could be meant.
      viewpoint: where the first image was taken from, in the boxes' frame.
    """
    like: dict[str, list[Box]] = {}
    for box in boxes:
        like.setdefault(box.category, []).append(box)
    alone = [group[0] for group in like.values() if len(group) == 1]
    found: dict[str, list[Phrase]] = {}
    for box in boxes:
        group = like[box.category]
        said = [
            *([Phrase("category", f"the {box.category}")] if len(group) == 1 else ()),
            *_by_attribute(box, group),
            *_by_parts(box, boxes, like),
            *(_by_size(box, group) if len(group) > 1 else ()),
            *(_by_relation(box, group, alone) if len(group) > 1 else ()),
        ]
        found[box.name] = said or [_by_order(box, group, viewpoint)]
    return found


def _by_attribute(box: Box, group: Sequence[Box]) -> list[Phrase]:
    others = [a for other in group if other is not box for a in other.attributes]
    return [
        Phrase("attribute", f"the {attribute.replace('{}', box.category)}")
        for attribute in box.attributes
        if attribute not in others
    ]


def _by_parts(box: Box, boxes: Sequence[Box], like: dict[str, list[Box]]) -> list[Phrase]:
    """A wall by the one door, window or opening of the scene that is in it, and the other way."""
    said = []
    if box.group == "wall" and len(like[box.category]) > 1:
        for other in boxes:
            if other.parent == box.name and other.group != OBJECT:
                siblings = [b for b in like[other.category] if b.parent == box.name]
                if len(like[other.category]) == 1 or len(siblings) == len(like[other.category]):
                    noun = f"the {other.category}" if len(siblings) == 1 else f"{other.category}s"
                    others = tuple(b.name for b in siblings)
                    said.append(Phrase("relation", f"the wall with {noun}", others))
    return list(dict.fromkeys(said))


def _by_size(box: Box, group: Sequence[Box]) -> list[Phrase]:
    high, low = ("largest", "smallest") if box.group == OBJECT else ("widest", "narrowest")
    if box.group == "wall":
        high, low = "longest", "shortest"
    mine, rest = _measure(box), [_measure(other) for other in group if other is not box]
    if mine > (1 + _SHARE) * max(rest):
        return [Phrase("size", f"the {high} {box.category}")]
    if mine < (1 - _SHARE) * min(rest):
        return [Phrase("size", f"the {low} {box.category}")]
    return []


def _by_relation(box: Box, group: Sequence[Box], alone: Sequence[Box]) -> list[Phrase]:
    said = []
    for mark in alone:
        for word, sign in (("nearest to", 1), ("farthest from", -1)):
            # People measure from edge to edge or from middle to middle: both must agree.
            if all(
                _first([sign * measure(other, mark) for other in (box, *_others(box, group))])
                for measure in (_gap, _between)
            ):
                text = f"the {box.category} {word} the {mark.category}"
                said.append(Phrase("relation", text, (mark.name,)))
    return said


def _others(box: Box, group: Sequence[Box]) -> list[Box]:
    return [other for other in group if other is not box]


def _first(values: Sequence[float]) -> bool:
    """Whether the first is the least by a margin (distances, or negated ones)."""
    mine, rest = values[0], min(values[1:])
    return rest - mine > max(_METRES, _SHARE * min(abs(rest), abs(mine)))


def _between(box: Box, mark: Box) -> float:
    return float(np.linalg.norm(box.centre - mark.centre))


def _gap(box: Box, mark: Box) -> float:
    """Metres between two boxes, nearly: from the corners and the middle of one to the other."""
    return min(
        *(box.distance(point) for point in (mark.centre, *mark.corners())),
        *(mark.distance(point) for point in (box.centre, *box.corners())),
    )


def _by_order(box: Box, group: Sequence[Box], viewpoint: Float[np.ndarray, "3"]) -> Phrase:
    """By rank, in distance or in size: whichever tells this box better from its like."""
    largest = {"wall": "longest", OBJECT: "largest"}.get(box.group, "widest")
    distances = np.array([np.linalg.norm(other.centre - viewpoint) for other in group])
    sizes = np.array([_measure(other) for other in group])
    index = next(i for i, other in enumerate(group) if other is box)
    rank, margin = _rank(distances, index)
    other_rank, other_margin = _rank(-sizes, index)
    if margin >= other_margin:
        text = f"the {_ordinal(rank)}nearest {box.category} to {VIEWPOINT}"
    else:
        text = f"the {_ordinal(other_rank)}{largest} {box.category}"
    return Phrase("order", text)


def _rank(values: np.ndarray, index: int) -> tuple[int, float]:
    """The place of a value among the others, and its gap to the next, as a share of their span."""
    rank = int(np.flatnonzero(np.argsort(values, kind="stable") == index)[0])
    gap = np.abs(np.delete(values, index) - values[index]).min()
    return rank, float(gap / max(np.ptp(values), 1e-9))


def _ordinal(rank: int) -> str:
    """Nothing for 0, "second " for 1, "21st " for 20."""
    if rank < len(_ORDINALS):
        return _ORDINALS[rank]
    number = rank + 1
    ending = "th" if number % 100 in (11, 12, 13) else _ENDINGS.get(number % 10, "th")
    return f"{number}{ending} "


def _measure(box: Box) -> float:
    """What its size is told by: volume of an object, width of a surface."""
    return float(np.prod(box.size)) if box.group == OBJECT else float(box.size[0])
