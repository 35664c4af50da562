"""How operations are counted: a multiply-add is two, and only matrix products count."""

from typing import NamedTuple


class Flops(NamedTuple):
    """Operations of a forward pass.

    Attributes:
      linear: products of activations with parameters.
      attention: products of activations with each other.
      entry: products of what goes in with parameters, for which no gradient is needed if nothing
        learns before.
    """

    linear: float
    attention: float = 0.0
    entry: float = 0.0
