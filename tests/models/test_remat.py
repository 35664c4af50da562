"""What the backward pass computes again, seen in what is traced: nothing here is computed.

Axes: B batch, T tokens, N heads, H head dim, D width, L layers.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxvlm.models import cudnn
from jaxvlm.models.attention import attention
from jaxvlm.models.partition import gathered
from jaxvlm.models.remat import rematerialised
from jaxvlm.models.vggt.blocks import fold

LAYERS, WIDTH = 3, 64
X = jax.ShapeDtypeStruct((2, 32, 2, WIDTH), jnp.bfloat16)
KERNELS = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.bfloat16)


def layer(x, kernel):
    """Attention behind a product with a parameter."""
    query = x @ gathered(kernel)
    return attention(query, query, query, causal=True)


def traced(scan):
    """The program of the gradient of a scan over layers with `layer` as body, as text."""
    gradient = jax.grad(lambda kernels, x: scan(kernels, x).astype(jnp.float32).sum())
    return str(jax.make_jaxpr(gradient)(KERNELS, X))


def scanned(remat):
    def scan(kernels, x):
        body = rematerialised(lambda x, kernel: (layer(x, kernel), None), remat)
        return jax.lax.scan(body, x, kernels)[0]

    return scan


# Of every query the largest score, which only the forward pass looks for, or cuDNN's kernel.
@pytest.mark.parametrize("step", ["reduce_max", "dot_product_attention_fwd_wrapper"])
@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("dots", 1), ("full", 2)])
def test_attention_is_computed_twice_only_where_all_is(monkeypatch, step, remat, times):
    if step == cudnn.KERNEL:
        monkeypatch.setattr(cudnn, "_elsewhere", True)
        for check in ("check_cudnn_version", "check_compute_capability"):
            monkeypatch.setattr(
                f"jax._src.cudnn.fused_attention_stablehlo.{check}", lambda *_: 91000
            )
    assert traced(scanned(remat)).count(f" {step}[") == times


@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("remat", ["none", "dots", "full", "fold"])
def test_gathered_parameters_are_never_kept(fsdp, remat):
    """Each is gathered forwards and again backwards."""

    def folded(kernels, x):
        return fold(lambda x, of, _: layer(x, of[0]), x, (kernels,), remat=False)

    mesh = AbstractMesh((1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        text = traced(folded if remat == "fold" else scanned(remat))
    assert text.count("name=gathered") == (2 if fsdp > 1 else 0)
