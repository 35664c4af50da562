"""Automata over bytes: what may follow in a text that must be of a certain form.

A form is built from the end to the front: `literal(text, then)` is the state in which `text` must
come, and after it whatever may come in the state `then`.
"""

import dataclasses
from collections.abc import Iterator

# Bytes of a text in double quotes that stand for themselves; those above 127 are parts of letters.
PLAIN = frozenset(range(32, 256)) - frozenset(b'"\\')
DIGITS = frozenset(b"0123456789")


@dataclasses.dataclass(eq=False)
class State:
    """Where a text may stand.

    Attributes:
      steps: bytes that may follow, and the state behind each.
      free: states that are entered without a byte.
      is_end: the text may end here.
    """

    steps: list[tuple[frozenset[int], "State"]] = dataclasses.field(default_factory=list)
    free: list["State"] = dataclasses.field(default_factory=list)
    is_end: bool = False


# What a text may be at a place: all states that it may stand in.
Place = frozenset[State]


def end() -> State:
    """The end of a text."""
    return State(is_end=True)


def byte(allowed: frozenset[int], then: State) -> State:
    """One byte of several."""
    return State(steps=[(allowed, then)])


def literal(text: str, then: State) -> State:
    """A text."""
    for value in reversed(text.encode()):
        then = byte(frozenset([value]), then)
    return then


def either(*states: State) -> State:
    """One of several forms."""
    return State(free=list(states))


def place(*states: State) -> Place:
    """The place in which a text stands that may stand in these states."""
    found: dict[State, None] = {}
    waiting = list(states)
    while waiting:
        state = waiting.pop()
        if state not in found:
            found[state] = None
            waiting += state.free
    return frozenset(state for state in found if state.steps or state.is_end)


def following(at: Place) -> dict[int, Place]:
    """By the byte that comes next, where the text stands then."""
    found: dict[int, list[State]] = {}
    for state in at:
        for allowed, then in state.steps:
            for value in allowed:
                found.setdefault(value, []).append(then)
    # Many bytes lead to the same place.
    known: dict[frozenset[State], Place] = {}
    for states in map(frozenset, found.values()):
        if states not in known:
            known[states] = place(*states)
    return {value: known[frozenset(states)] for value, states in found.items()}


def places(start: Place) -> Iterator[tuple[Place, dict[int, Place]]]:
    """All places that can be reached, each with what follows."""
    seen, waiting = {start}, [start]
    while waiting:
        at = waiting.pop()
        then = following(at)
        yield at, then
        for reached in set(then.values()) - seen:
            seen.add(reached)
            waiting.append(reached)
