"""Questions about a room, with the one answer its facts allow."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jaxvlm.rooms.labels import COLOURS, KINDS, article, plural
from jaxvlm.rooms.scene import Room, RoomObject, gap
from jaxvlm.rooms.standpoints import Standpoint, standpoints

WEIGHTS: dict[str, float] = {
    "colour": 24,
    "what": 20,
    "existence": 14,
    "on": 12,
    "relation": 8,
    "count": 8,
    "size": 5,
    "left_right": 5,
    "front_behind": 4,
}
"""How often each kind is asked, among the kinds that a room allows."""

NUMBERS = ("zero", "one", "two", "three", "four")
RARITY = {"two": 3.0, "three": 6.0, "four": 8.0, "behind": 1.5}
"""Answers drawn more often where they are possible, since few rooms allow them."""

NEXT_TO, NEXT_MARGIN = 0.7, 0.4
NEAREST_MARGIN = 0.5
LARGER, TALLER = 1.6, 1.3
SIDEWAYS = 0.6


@dataclass(frozen=True)
class Question:
    """One question; `object_ids` are indices of the objects it is about."""

    kind: str
    question: str
    answer: str
    object_ids: tuple[int, ...]
    object_names: tuple[str, ...]
    situation: str | None = None


@dataclass(frozen=True)
class Facts:
    """What may be asked about: the room, and which of its objects can be seen (bool[N])."""

    room: Room
    visible: np.ndarray

    @property
    def objects(self) -> tuple[RoomObject, ...]:
        """All objects, seen or not: names must be unique among these."""
        return self.room.objects

    def unique_kinds(self) -> list[int]:
        """Visible objects that are the only one of their kind."""
        kinds = Counter(thing.kind for thing in self.objects)
        return [i for i, thing in self.seen() if kinds[thing.kind] == 1]

    def seen(self) -> list[tuple[int, RoomObject]]:
        """Visible objects with their indices."""
        return [(i, thing) for i, thing in enumerate(self.objects) if self.visible[i]]

    def carried(self, host: int) -> list[int]:
        """Everything that stands on object `host`."""
        return [i for i, thing in enumerate(self.objects) if thing.support == host]

    def on_floor(self) -> list[int]:
        """Everything that stands on the floor."""
        return [i for i, thing in enumerate(self.objects) if thing.support < 0]

    def make(
        self,
        kind: str,
        text: str,
        answer: str,
        about: tuple[int, ...],
        situation: str | None = None,
    ) -> Question:
        """A question about the objects `about`."""
        names = tuple(self.objects[i].kind for i in about)
        return Question(kind, text, answer, about, names, situation)


Form = Callable[[Facts], Iterator[Question]]


def ask(room: Room, visible: np.ndarray, count: int, rng: np.random.Generator) -> list[Question]:
    """Up to `count` different questions in the mix of `WEIGHTS`, answers spread out.

    The kind is drawn first, then the form, then the answer, then the question, so that neither
    the kind nor the wording gives the answer away.
    """
    facts = Facts(room, visible)
    pool = {
        kind: [candidates for form in FORMS[kind] if (candidates := list(form(facts)))]
        for kind in WEIGHTS
    }
    asked: list[Question] = []
    used: Counter[str] = Counter()
    while len(asked) < count and (kinds := [kind for kind in pool if pool[kind]]):
        kind = _draw(rng, kinds, [WEIGHTS[k] for k in kinds])
        form = pool[kind][rng.integers(len(pool[kind]))]
        answers = sorted({question.answer for question in form})
        weights = [RARITY.get(answer, 1.0) / (1 + used[answer]) for answer in answers]
        if kind == "existence":
            weights = [1.0] * len(answers)
        answer = _draw(rng, answers, weights)
        fitting = [question for question in form if question.answer == answer]
        chosen = fitting[rng.integers(len(fitting))]
        asked.append(chosen)
        used[answer] += 1
        pool[kind] = [
            rest
            for candidates in pool[kind]
            if (rest := [q for q in candidates if not _repeats(q, chosen)])
        ]
    return asked


def _repeats(a: Question, b: Question) -> bool:
    """The same thing asked again, be it in other words."""
    same_words = (a.situation, a.question) == (b.situation, b.question)
    same_fact = (a.situation, a.object_ids, a.answer) == (b.situation, b.object_ids, b.answer)
    return same_words or (same_fact and bool(a.object_ids))


def _draw(rng: np.random.Generator, options: list[str], weights: list[float]) -> str:
    shares = np.array(weights) / np.sum(weights)
    return options[rng.choice(len(options), p=shares)]


def colour(facts: Facts) -> Iterator[Question]:
    """The colour of the only object of its kind."""
    for i in facts.unique_kinds():
        thing = facts.objects[i]
        for text in ("What color is the {}?", "What is the color of the {}?"):
            yield facts.make("colour", text.format(thing.kind), thing.colour, (i,))


def what(facts: Facts) -> Iterator[Question]:
    """The kind of the only object of its colour."""
    colours = Counter(thing.colour for thing in facts.objects)
    for i, thing in facts.seen():
        if colours[thing.colour] == 1:
            for text in ("What is the {} thing?", "What is the {} object in the room?"):
                yield facts.make("what", text.format(thing.colour), thing.kind, (i,))


def existence_kind(facts: Facts) -> Iterator[Question]:
    """Whether a kind is there at all."""
    seen = {thing.kind: i for i, thing in facts.seen()}
    present = {thing.kind for thing in facts.objects}
    for kind in KINDS:
        text = f"Is there {article(kind)} in the room?"
        if kind in seen:
            yield facts.make("existence", text, "yes", (seen[kind],))
        elif kind not in present:
            yield facts.make("existence", text, "no", ())


def existence_name(facts: Facts) -> Iterator[Question]:
    """Whether a kind in a colour is there; refusals are near misses in kind or colour."""
    seen = {(thing.colour, thing.kind): i for i, thing in facts.seen()}
    kinds = {thing.kind for thing in facts.objects}
    colours = {thing.colour for thing in facts.objects}
    present = {(thing.colour, thing.kind) for thing in facts.objects}
    for name in COLOURS:
        for kind in KINDS:
            text = f"Is there {article(f'{name} {kind}')} in the room?"
            if (name, kind) in seen:
                yield facts.make("existence", text, "yes", (seen[name, kind],))
            elif (name, kind) not in present and (kind in kinds or name in colours):
                yield facts.make("existence", text, "no", ())


def count_kind(facts: Facts) -> Iterator[Question]:
    """How many of a kind, all of them visible."""
    for kind in KINDS:
        those = tuple(i for i, thing in enumerate(facts.objects) if thing.kind == kind)
        if len(those) < len(NUMBERS) and facts.visible[list(those)].all():
            text = f"How many {plural(kind)} are there?"
            yield facts.make("count", text, NUMBERS[len(those)], those)


def count_colour(facts: Facts) -> Iterator[Question]:
    """How many things of a colour, all of them visible."""
    for name in COLOURS:
        those = tuple(i for i, thing in enumerate(facts.objects) if thing.colour == name)
        if len(those) < len(NUMBERS) and facts.visible[list(those)].all():
            text = f"How many {name} things are in the room?"
            yield facts.make("count", text, NUMBERS[len(those)], those)


def on_what(facts: Facts) -> Iterator[Question]:
    """What the only host of its kind carries, where that is one thing."""
    for host in facts.unique_kinds():
        carried = facts.carried(host)
        if len(carried) == 1 and facts.visible[carried[0]]:
            text = f"What is on the {facts.objects[host].kind}?"
            yield facts.make("on", text, facts.objects[carried[0]].kind, (host, carried[0]))


def on_colour(facts: Facts) -> Iterator[Question]:
    """The colour of the only thing of its kind on a host."""
    for host in facts.unique_kinds():
        carried = facts.carried(host)
        kinds = Counter(facts.objects[i].kind for i in carried)
        for i in carried:
            thing = facts.objects[i]
            if kinds[thing.kind] == 1 and facts.visible[i]:
                text = f"What color is the {thing.kind} on the {facts.objects[host].kind}?"
                yield facts.make("on", text, thing.colour, (i, host))


def on_host(facts: Facts) -> Iterator[Question]:
    """What the only thing of its kind stands on."""
    for i in facts.unique_kinds():
        host = facts.objects[i].support
        if host >= 0 and facts.visible[host]:
            text = f"What is under the {facts.objects[i].kind}?"
            yield facts.make("on", text, facts.objects[host].kind, (i, host))


def relation_door(facts: Facts) -> Iterator[Question]:
    """What stands closest to the door or the only window, by a clear margin."""
    for kind in ("door", "window"):
        openings = facts.room.opening(kind)
        if len(openings) != 1:
            continue
        place = openings[0].centre[None, :2]
        nearest = _nearest(facts, place, exclude=-1, margin=NEAREST_MARGIN)
        if nearest is not None:
            index, _ = nearest
            text = f"What is closest to the {kind}?"
            yield facts.make("relation", text, facts.objects[index].kind, (index,))


def relation_next(facts: Facts) -> Iterator[Question]:
    """What is next to the only object of its kind."""
    for i, index in _neighbours(facts):
        text = f"What is next to the {facts.objects[i].kind}?"
        yield facts.make("relation", text, facts.objects[index].kind, (i, index))


def relation_colour(facts: Facts) -> Iterator[Question]:
    """The colour of what is next to the only object of its kind."""
    for i, index in _neighbours(facts):
        text = f"What color is the thing next to the {facts.objects[i].kind}?"
        yield facts.make("relation", text, facts.objects[index].colour, (index, i))


def _neighbours(facts: Facts) -> Iterator[tuple[int, int]]:
    for i in facts.unique_kinds():
        if facts.objects[i].support < 0:
            outline = facts.objects[i].footprint
            nearest = _nearest(facts, outline, exclude=i, margin=NEXT_MARGIN)
            if nearest is not None and nearest[1] < NEXT_TO:
                yield i, nearest[0]


def _nearest(
    facts: Facts, outline: np.ndarray, exclude: int, margin: float
) -> tuple[int, float] | None:
    """The closest object on the floor and its distance, if visible and closest by `margin`."""
    distances = sorted(
        (gap(outline, facts.objects[i].footprint), i) for i in facts.on_floor() if i != exclude
    )
    clear = len(distances) > 1 and distances[1][0] - distances[0][0] > margin
    if not clear or not facts.visible[distances[0][1]]:
        return None
    return distances[0][1], distances[0][0]


OF_ANY_VOLUME = ("box", "ball", "teddy bear", "toy car", "flower", "lamp")
OF_ANY_HEIGHT = ("box", "teddy bear", "flower", "lamp")
"""Kinds whose ranges overlap, so that the kinds alone do not tell which is larger or taller."""


def size_larger(facts: Facts) -> Iterator[Question]:
    """Which of two fills the larger box."""
    text, sizes = "Which is larger, the {} or the {}?", [thing.size for thing in facts.objects]
    yield from _compare(facts, text, OF_ANY_VOLUME, [w * d * h for w, d, h in sizes], LARGER)


def size_taller(facts: Facts) -> Iterator[Question]:
    """Which of two is higher in itself, wherever it stands."""
    text, heights = "Which is taller, the {} or the {}?", [o.size[2] for o in facts.objects]
    yield from _compare(facts, text, OF_ANY_HEIGHT, heights, TALLER)


def _compare(
    facts: Facts, text: str, kinds: tuple[str, ...], measure: list[float], ratio: float
) -> Iterator[Question]:
    unique = [i for i in facts.unique_kinds() if facts.objects[i].kind in kinds]
    for a, b in combinations(unique, 2):
        larger, smaller = (a, b) if measure[a] > measure[b] else (b, a)
        if measure[larger] > ratio * measure[smaller]:
            for first, second in ((a, b), (b, a)):
                words = text.format(facts.objects[first].kind, facts.objects[second].kind)
                yield facts.make("size", words, facts.objects[larger].kind, (larger, smaller))


def left_or_right(facts: Facts) -> Iterator[Question]:
    """On which side something clearly lies."""
    for place in standpoints(facts.room, facts.visible):
        for i in facts.unique_kinds():
            bearing, side = place.bearing(facts.objects[i].centre[:2])
            if i not in place.excluded and 35 < abs(bearing) < 145 and abs(side) > SIDEWAYS:
                text = f"Is the {facts.objects[i].kind} on my left or on my right?"
                answer = "left" if bearing > 0 else "right"
                yield facts.make("left_right", text, answer, (i,), place.situation)


def on_my_side(facts: Facts) -> Iterator[Question]:
    """The one thing on a side."""
    for sign, name in ((1, "left"), (-1, "right")):
        for place in standpoints(facts.room, facts.visible):
            index = _only(facts, place, 90 * sign, within=45, clear=70)
            if index is not None:
                text = f"What is on my {name}?"
                answer = facts.objects[index].kind
                yield facts.make("left_right", text, answer, (index,), place.situation)


def front_or_behind(facts: Facts) -> Iterator[Question]:
    """Whether something lies clearly ahead or behind."""
    for place in standpoints(facts.room, facts.visible):
        if place.at_wall:
            continue
        for i in facts.unique_kinds():
            bearing, _ = place.bearing(facts.objects[i].centre[:2])
            distance = np.linalg.norm(facts.objects[i].centre[:2] - place.position)
            if i not in place.excluded and distance > 0.7 and not 50 < abs(bearing) < 130:
                text = f"Is the {facts.objects[i].kind} in front of me or behind me?"
                answer = "in front" if abs(bearing) < 90 else "behind"
                yield facts.make("front_behind", text, answer, (i,), place.situation)


def in_front_of_me(facts: Facts) -> Iterator[Question]:
    """The one thing ahead of somebody who does not name it."""
    for place in standpoints(facts.room, facts.visible):
        index = _only(facts, place, 0, within=30, clear=55)
        if index is not None and not place.names_ahead:
            text, answer = "What is in front of me?", facts.objects[index].kind
            yield facts.make("front_behind", text, answer, (index,), place.situation)


def _only(facts: Facts, place: Standpoint, ahead: float, within: float, clear: float) -> int | None:
    """The visible object within `within` degrees of a bearing, if none else is within `clear`."""
    others = [i for i in facts.on_floor() if i not in place.excluded]
    off = {
        i: abs((place.bearing(facts.objects[i].centre[:2])[0] - ahead + 180) % 360 - 180)
        for i in others
    }
    near = [i for i in others if off[i] < clear]
    if len(near) == 1 and off[near[0]] < within and facts.visible[near[0]]:
        return near[0]
    return None


FORMS: dict[str, tuple[Form, ...]] = {
    "colour": (colour,),
    "what": (what,),
    "existence": (existence_kind, existence_name),
    "on": (on_what, on_colour, on_host),
    "relation": (relation_door, relation_next, relation_colour),
    "count": (count_kind, count_colour),
    "size": (size_larger, size_taller),
    "left_right": (left_or_right, on_my_side),
    "front_behind": (front_or_behind, in_front_of_me),
}
