import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.models.gelu import gelu


@pytest.mark.parametrize(("dtype", "apart"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_gelu_is_exact_in_the_dtype_of_its_input_also_where_it_is_nearly_zero(dtype, apart):
    x = jnp.linspace(-4, 6, 401).astype(dtype)
    exact = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in np.asarray(x, np.float64)]
    found = gelu(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=apart, atol=1e-6)
