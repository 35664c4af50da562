"""One of several equal shares of some work, each done by a job of its own: `--shard I/N`."""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Share:
    """Every `count`-th part, from `index` on.

    Attributes:
      index: from 0.
      count: of all shares; 1 is the whole.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def whole(self) -> bool:
        """Whether it is all of the work."""
        return self.count == 1

    def owns(self, number: int) -> bool:
        """Whether the part of this number is its own."""
        return number % self.count == self.index

    def of(self, parts: Sequence[T]) -> list[T]:
        """Its own parts."""
        return list(parts[self.index :: self.count])


WHOLE = Share()


def add_shard(parser: argparse.ArgumentParser) -> None:
    """The flag `--shard`, for the jobs of an array."""
    parser.add_argument(
        "--shard",
        type=_share,
        default=WHOLE,
        metavar="I/N",
        help="do the I-th of N equal shares, from 0; jobs with the others may run at once",
    )


def _share(text: str) -> Share:
    found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected I/N with I from 0 to N-1, N at most 99999, like 0/4"
        )
    return Share(int(found[1]), int(found[2]))
