"""What the fields of an action hold: how each kind is checked, written, and read back.

An action has numbers in metres. Its text, which a model reads and writes, has whole centimetres:
in Qwen3's tokenizer each digit is a token, and 1.20 costs one more than 120.
"""

import abc
import dataclasses
import json
import math
import re
from collections.abc import Sequence

import numpy as np

from jaxvlm.data.actions import automaton
from jaxvlm.data.actions.automaton import State
from jaxvlm.errors import shown

# A text of JSON that is not empty, without escapes that could be written in another way.
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\])+"'
_CENTIMETRES = 100
# No world is larger, in metres; products of larger numbers may not be finite.
_LARGEST = 1e6


class NotConform(ValueError):
    """A text that is no action.

    Attributes:
      at: where it stops being one, counted from 0.
      expected: what should stand there.
    """

    def __init__(self, at: int, expected: str):
        super().__init__(f"column {at + 1}: expected {expected}")
        self.at, self.expected = at, expected


class Field(abc.ABC):
    """A kind of value.

    Attributes:
      suffix: what the field's name has behind it in a text.
    """

    suffix = ""

    def problem(self, value: object) -> str | None:
        """What is wrong with a value in metres that is to be written; None where nothing is."""
        return self.malformed(value) or self.out_of_range(value)

    @abc.abstractmethod
    def malformed(self, value: object) -> str | None:
        """What is wrong with a value wherever it is measured from; None where nothing is."""

    def out_of_range(self, value) -> str | None:
        """Why a value that is well formed cannot be written; None where it can."""
        return None

    @abc.abstractmethod
    def write(self, value) -> str:
        """The text of a value that has no problem."""

    @abc.abstractmethod
    def read(self, text: str, at: int) -> tuple[object, int]:
        """The value that a text has at a place, and where it ends.

        Raises:
          NotConform: none begins there.
        """

    @abc.abstractmethod
    def form(self, then: State) -> State:
        """The state of an automaton in which what `read` takes must come, and `then` after it."""


@dataclasses.dataclass(frozen=True)
class Numbers(Field):
    """Some numbers, in a list where there are several.

    Attributes:
      count: how many.
      digits: each has at most.
      signed: they may be negative; if not, none is 0.
      scale: what 1 is written as.
      unit: for messages.
      suffix: see `Field`.
    """

    count: int = 3
    digits: int = 4
    signed: bool = True
    scale: int = _CENTIMETRES
    unit: str = "metres"
    suffix: str = "_cm"

    def malformed(self, value: object) -> str | None:
        """See `Field`."""
        numbers = value if self.count > 1 else [value]
        if (
            not isinstance(numbers, Sequence | np.ndarray)
            or len(numbers) != self.count
            or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
        ):
            what = f"a list of {self.count} numbers" if self.count > 1 else "a number"
            return f"must be {what} ({self.unit}), found {shown(value)}"
        if not all(abs(v) <= _LARGEST for v in numbers):
            return f"holds {shown(value)}; expected finite {self.unit}"
        if not self.signed and min(numbers) <= 0:
            return f"{shown(value)} must be positive {self.unit}"
        return None

    def out_of_range(self, value) -> str | None:
        """See `Field`."""
        if np.abs(value).max() > self.most:
            return f"{shown(value)} is out of range; give {self.unit}, at most {self.most:g}"
        return None

    @property
    def most(self) -> float:
        """No number is larger."""
        return (10**self.digits - 1) / self.scale

    def _whole(self, numbers) -> np.ndarray:
        whole = np.rint(np.asarray(numbers, np.float64) * self.scale).astype(np.int64)
        return whole if self.signed else np.maximum(whole, 1)

    def write(self, value) -> str:
        """See `Field`."""
        whole = self._whole(value if self.count > 1 else [value])
        text = ",".join(str(number) for number in whole)
        return f"[{text}]" if self.count > 1 else text

    def read(self, text: str, at: int) -> tuple[object, int]:
        """See `Field`."""
        if self.count == 1:
            number, end = self._number(text, at)
            return number / self.scale, end
        numbers, end = [], literal(text, at, "[")
        for place in range(self.count):
            end = literal(text, end, ",") if place else end
            number, end = self._number(text, end)
            numbers.append(number)
        end = literal(text, end, "]")
        return self._value(numbers, at), end

    def _value(self, numbers: list[int], at: int) -> list[float]:
        return [number / self.scale for number in numbers]

    def _number(self, text: str, at: int) -> tuple[int, int]:
        above = f"[1-9][0-9]{{0,{self.digits - 1}}}(?![0-9])"
        found = re.compile(f"0(?![0-9])|-?{above}" if self.signed else above).match(text, at)
        if not found:
            sign = "" if self.signed else "positive "
            raise NotConform(at, f"a {sign}whole number of at most {self.digits} digits")
        return int(found[0]), found.end()

    def form(self, then: State) -> State:
        """See `Field`."""
        if self.count == 1:
            return self._number_form(then)
        then = automaton.literal("]", then)
        for place in reversed(range(self.count)):
            then = self._number_form(then)
            then = automaton.literal("," if place else "[", then)
        return then

    def _number_form(self, then: State, zero: bool = True) -> State:
        """One number, which may be 0 where the kind has signs, and unless told otherwise."""
        digits = then
        for _ in range(self.digits - 1):
            digits = automaton.either(then, automaton.byte(automaton.DIGITS, digits))
        above = automaton.byte(automaton.DIGITS - {ord("0")}, digits)
        if not self.signed:
            return above
        signed = automaton.either(above, automaton.literal("-", above))
        return automaton.either(signed, automaton.literal("0", then)) if zero else signed


@dataclasses.dataclass(frozen=True)
class Point(Numbers):
    """A place, which has other numbers in another frame."""


@dataclasses.dataclass(frozen=True)
class Direction(Numbers):
    """A direction, written in hundredths of its length; read, it is of length 1."""

    digits: int = 3
    unit: str = "parts of a direction"
    suffix: str = ""

    @property
    def most(self) -> float:
        """Its length is of no account."""
        return math.inf

    def malformed(self, value: object) -> str | None:
        """See `Field`."""
        wrong = super().malformed(value)
        if wrong is None and np.linalg.norm(value) < 1e-3:
            return f"{shown(value)} is no direction"
        return wrong

    def write(self, value) -> str:
        """See `Field`."""
        return super().write(np.asarray(value, np.float64) / np.linalg.norm(value))

    def _value(self, numbers: list[int], at: int) -> list[float]:
        if not any(numbers):
            raise NotConform(at, "a direction, which is not 0 everywhere")
        length = np.linalg.norm(numbers)
        return [round(float(number / length), 6) for number in numbers]

    def form(self, then: State) -> State:
        """See `Field`."""
        then = automaton.literal("]", then)
        # Numbers of which one before was not 0, and those of which none was.
        some = none = then
        for place in reversed(range(self.count)):
            last = place == self.count - 1
            zero = [] if last else [automaton.literal("0", none)]
            none = automaton.either(self._number_form(some, zero=False), *zero)
            some = self._number_form(some)
            sign = "," if place else "["
            none, some = automaton.literal(sign, none), automaton.literal(sign, some)
        return none


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """A text."""

    def malformed(self, value: object) -> str | None:
        """See `Field`."""
        if not isinstance(value, str) or not value:
            return f"must be a text, found {shown(value)}"
        if any(character < " " for character in value):
            return f"{shown(value)} holds a control character"
        return None

    def write(self, value) -> str:
        """See `Field`."""
        return json.dumps(value, ensure_ascii=False)

    def read(self, text: str, at: int) -> tuple[object, int]:
        """See `Field`."""
        found = re.compile(_STRING).match(text, at)
        if not found:
            raise NotConform(at, "a text in double quotes")
        return json.loads(found[0]), found.end()

    def form(self, then: State) -> State:
        """See `Field`."""
        inside = State()
        escaped = automaton.byte(frozenset(b'"\\'), inside)
        sign = automaton.either(
            automaton.byte(automaton.PLAIN, inside), automaton.literal("\\", escaped)
        )
        inside.free += [sign, automaton.literal('"', then)]
        return automaton.literal('"', sign)


@dataclasses.dataclass(frozen=True)
class Texts(Text):
    """A list of texts, which may be empty."""

    def malformed(self, value: object) -> str | None:
        """See `Field`."""
        if not isinstance(value, list | tuple):
            return f"must be a list of texts, found {shown(value)}"
        return next(filter(None, map(super().malformed, value)), None)

    def write(self, value) -> str:
        """See `Field`."""
        return f"[{','.join(map(super().write, value))}]"

    def read(self, text: str, at: int) -> tuple[object, int]:
        """See `Field`."""
        end, values = literal(text, at, "["), []
        while not text.startswith("]", end):
            end = literal(text, end, ",") if values else end
            value, end = super().read(text, end)
            values.append(value)
        return values, end + 1

    def form(self, then: State) -> State:
        """See `Field`."""
        close, more = automaton.literal("]", then), State()
        behind = automaton.either(close, automaton.literal(",", more))
        more.free.append(super().form(behind))
        return automaton.literal("[", automaton.either(close, more))


def literal(text: str, at: int, expected: str) -> int:
    """Where a text that must stand here ends."""
    for place, character in enumerate(expected, at):
        if text[place : place + 1] != character:
            raise NotConform(place, repr(expected[place - at :]))
    return at + len(expected)


POINT = Point()
SIZE = Numbers(signed=False)
LENGTH = Numbers(count=1, signed=False)
DIRECTION = Direction()
TEXT = Text()
TEXTS = Texts()
