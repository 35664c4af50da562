"""Vectors behind each other, for linear maps."""

from jaxtyping import Array, Float


def flat(x: Float[Array, "*A D"]) -> Float[Array, "A D"]:
    """All vectors of any number of axes behind each other.

    The gradient of a linear map is then a product of two matrices, which XLA makes faster than one
    of arrays with more axes: on a CPU by a third.
    """
    return x.reshape(-1, x.shape[-1])
