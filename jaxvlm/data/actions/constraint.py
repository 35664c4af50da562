"""Which tokens may follow in the text of an action: an automaton over a tokenizer's vocabulary.

Axes: N places of a text, K tokens that may follow at a place (as many as at the place with most).
"""

import bisect
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxvlm.data.actions import automaton, language
from jaxvlm.data.actions.automaton import PLAIN, Place
from jaxvlm.data.tokenizer import Tokenizer

# A place that no token leads to, and a token that is none.
NOWHERE = -1


class Constraint(NamedTuple):
    """The tokens that may follow, place by place; a text begins at place 0.

    Attributes:
      tokens: those that may follow at each place; `NOWHERE` behind the last.
      places: where each leads.
      plain: where any token of plain letters leads, `NOWHERE` where none may follow.
      longest: tokens that a text may have, its end among them; None without a bound.
    """

    tokens: Int32[np.ndarray, "N K"]
    places: Int32[np.ndarray, "N K"]
    plain: Int32[np.ndarray, "N"]
    longest: int | None


class ActionConstraints:
    """The constraints of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        """Sorts the vocabulary, which takes a second for one of 150,000."""
        self._end = tokenizer.end_id
        pairs = sorted((text, index) for index, text in tokenizer.texts().items())
        self._texts = [text for text, _ in pairs]
        self._ids = [index for _, index in pairs]
        # Within a text in double quotes these mean the same: more letters.
        is_plain = np.array([PLAIN.issuperset(text) for text in self._texts])
        self.plain_ids = np.array(self._ids)[is_plain]
        self._others = np.flatnonzero(~is_plain).tolist()
        self._behind = language.forms()
        # What may follow behind a scene's name is the same for all scenes, and kept.
        starts = [automaton.place(state) for state in self._behind.values()]
        self._common = {at for start in starts for at, _ in automaton.places(start)}
        self._letters: dict[Place, dict[int, Place]] = {}
        self._known: dict[Place, tuple[dict[int, Place], Place | None]] = {}

    @functools.lru_cache(maxsize=4096)  # noqa: B019  as long as the process, like the tokenizer
    def of(self, scene: str) -> Constraint:
        """The constraint of the texts that are an action in a scene."""
        start = automaton.place(language.beginning(scene, self._behind))
        numbers: dict[Place, int] = {start: 0}
        waiting, rows = [start], []
        while waiting:
            follow, plain = self._follow(waiting.pop(0))
            for place in (*follow.values(), *filter(None, (plain,))):
                if place not in numbers:
                    numbers[place] = len(numbers)
                    waiting.append(place)
            found = {token: numbers[place] for token, place in follow.items()}
            rows.append((found, NOWHERE if plain is None else numbers[plain]))
        width = max(len(found) for found, _ in rows)
        tokens = np.full((len(rows), width), NOWHERE, np.int32)
        places = np.full((len(rows), width), 0, np.int32)
        for row, (found, _) in enumerate(rows):
            tokens[row, : len(found)] = list(found)
            places[row, : len(found)] = list(found.values())
        plain = np.array([plain for _, plain in rows], np.int32)
        for known in (self._known, self._letters):
            for place in known.keys() - self._common:
                del known[place]
        return Constraint(tokens, places, plain, _longest(start))

    def _follow(self, at: Place) -> tuple[dict[int, Place], Place | None]:
        """Tokens and where they lead; and where all plain ones lead."""
        if at not in self._known:
            targets = {self._following(at).get(value) for value in PLAIN}
            plain = targets.pop() if len(targets) == 1 else None
            if plain is None:
                found = {self._ids[n]: then for n, then in self._walk(at, 0, 0, len(self._texts))}
            else:
                # Most of the vocabulary may follow, and nearly all of it leads to one place.
                behind = {n: self._behind_text(at, self._texts[n]) for n in self._others}
                found = {self._ids[n]: then for n, then in behind.items() if then is not None}
            if any(state.is_end for state in at):
                found[self._end] = at
            self._known[at] = found, plain
        return self._known[at]

    def _following(self, at: Place) -> dict[int, Place]:
        if at not in self._letters:
            self._letters[at] = automaton.following(at)
        return self._letters[at]

    def _behind_text(self, at: Place, text: bytes) -> Place | None:
        """Where a text leads."""
        for value in text:
            at = self._following(at).get(value)
            if at is None:
                return None
        return at

    def _walk(self, at: Place, depth: int, low: int, high: int) -> Iterator[tuple[int, Place]]:
        """The tokens among those from `low` to `high`, alike to a depth, that may follow."""
        for value, then in self._following(at).items():
            start, stop = self._range(depth, value, low, high)
            if start == stop:
                continue
            if len(self._texts[start]) == depth + 1:
                yield start, then
            yield from self._walk(then, depth + 1, start, stop)

    def _range(self, depth: int, value: int, low: int, high: int) -> tuple[int, int]:
        """Those that have a byte at a depth."""

        def at(text: bytes) -> int:
            return text[depth] if len(text) > depth else NOWHERE

        start = bisect.bisect_left(self._texts, value, low, high, key=at)
        return start, bisect.bisect_right(self._texts, value, start, high, key=at)


def _longest(start: Place) -> int | None:
    """The bytes of the longest text, and its end; each may be a token of its own."""
    follow = {at: set(then.values()) for at, then in automaton.places(start)}
    reached, count = {start}, 0
    while reached:
        if count > len(follow):
            # Only a loop goes on for more bytes than there are places.
            return None
        reached = set().union(*(follow[at] for at in reached))
        count += 1
    return count
