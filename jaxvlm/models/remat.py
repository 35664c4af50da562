"""What the backward pass keeps and what it computes again, by name."""

from collections.abc import Callable

import jax

from jaxvlm.errors import UserError
from jaxvlm.models.partition import GATHERED

# None keeps the layer's input only.
_POLICIES = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}


def rematerialised(body: Callable, remat: str) -> Callable:
    """The body of a scan over layers with what it saves for the backward pass.

    Args:
      body: function of `jax.lax.scan`.
      remat: `"none"` saves all but gathered parameters, `"full"` only the layer's input, `"dots"`
        the matrix products.
    """
    if remat not in _POLICIES:
        raise UserError(f"remat={remat!r} is unknown, expected one of {list(_POLICIES)}")
    return jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=False)
