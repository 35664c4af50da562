"""Low-rank adaptation of linear maps (LoRA, arXiv 2106.09685): y = xW + alpha/rank · drop(x) A B.

Axes: I input width, O output width, R rank.
"""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxvlm.errors import UserError
from jaxvlm.models.dropout import dropout

# The linear maps of a decoder layer.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps of a decoder layer are adapted, and how.

    Attributes:
      rank: R.
      alpha: the adapters' output is scaled by alpha / rank.
      dropout: on the adapters' input, while training.
      targets: names of the maps, of `TARGETS`.
    """

    rank: int
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank={self.rank}: expected at least 1")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha={self.alpha}: expected more than 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout} is not in [0, 1)")
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise UserError(f"lora.targets={self.targets}: expected some of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """The factor on the adapters' output."""
        return self.alpha / self.rank


class LoraLinear(nnx.Linear):
    """A linear map without bias and its adapter, which changes nothing before it is trained."""

    def __init__(self, in_dim: int, out_dim: int, lora: LoraConfig, *, kernel_init, rngs: nnx.Rngs):
        super().__init__(in_dim, out_dim, use_bias=False, kernel_init=kernel_init, rngs=rngs)
        self.lora = lora
        # As in the reference implementation (Kaiming's uniform with a = sqrt(5)) A lies in
        # ±1/sqrt(I).
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.lora_a = nnx.Param(uniform(rngs.params(), (in_dim, lora.rank)))
        self.lora_b = nnx.Param(nnx.initializers.zeros(rngs.params(), (lora.rank, out_dim)))

    def __call__(
        self, x: Float[Array, "*A I"], key: jax.Array | None = None
    ) -> Float[Array, "*A O"]:
        """The map of `x`; `key` draws the dropout, None is for none."""
        low = dropout(x, self.lora.dropout, key) @ self.lora_a[...]
        return super().__call__(x) + self.lora.scale * (low @ self.lora_b[...])


def is_adapter(path: str) -> bool:
    """Whether a parameter is a part of an adapter."""
    return path.endswith(("/lora_a", "/lora_b"))
