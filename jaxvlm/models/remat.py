"""What the backward pass keeps and what it computes again, by name."""

from collections.abc import Callable

import jax
from jax import checkpoint_policies as policies

from jaxvlm.errors import UserError
from jaxvlm.models.cudnn import KERNEL
from jaxvlm.models.partition import GATHERED
from jaxvlm.models.pieces import ATTENDED

_gathered = policies.save_only_these_names(GATHERED)
_products = policies.save_from_both_policies(
    policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENDED)
)


def _all_but_gathered(primitive, *inputs, **params) -> bool:
    # A gathered parameter is there twice: as the constraint leaves it, and under its name. JAX's
    # own `save_anything_except_these_names` keeps what it names (0.10.2).
    constraint = primitive.name == "sharding_constraint"
    return not (constraint or _gathered(primitive, *inputs, **params))


def _products_and_attention(primitive, *inputs, **params) -> bool:
    return primitive.name == KERNEL or _products(primitive, *inputs, **params)


# None keeps the layer's input only.
_POLICIES = {"none": _all_but_gathered, "dots": _products_and_attention, "full": None}


def rematerialised(body: Callable, remat: str) -> Callable:
    """The body of a scan over layers with what it saves for the backward pass.

    Args:
      body: function of `jax.lax.scan`.
      remat: `"none"` saves all but gathered parameters, `"full"` only the layer's input, `"dots"`
        the products with parameters and what attention gives.

    Raises:
      UserError: no such `remat`.
    """
    if remat not in _POLICIES:
        raise UserError(f"remat={remat!r} is unknown, expected one of {list(_POLICIES)}")
    return jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=False)
