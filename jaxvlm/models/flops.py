"""How operations are counted: a multiply-add is two, and only matrix products count."""

from typing import NamedTuple


class Flops(NamedTuple):
    """Operations of a forward pass.

    Attributes:
      linear: products with parameters.
      attention: products of activations with each other.
    """

    linear: float
    attention: float = 0.0
