"""VGGT: the aggregator and its prediction heads (arXiv:2503.11651).

Axes: B batch, V views, H W pixels, P tokens a view, C width, I iterations of the camera head.
"""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvlm.models.vggt.aggregator import Aggregator
from jaxvlm.models.vggt.camera import CameraHead
from jaxvlm.models.vggt.config import VGGTConfig
from jaxvlm.models.vggt.dpt import DepthHead, PointHead


class VGGT(nnx.Module):
    """`aggregator`, and `camera_head`, `depth_head`, `point_head` where the config names them."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.aggregator = Aggregator(config, rngs=rngs)
        if "camera" in config.heads:
            self.camera_head = CameraHead(config, rngs=rngs)
        if "depth" in config.heads:
            self.depth_head = DepthHead(config, rngs=rngs)
        if "point" in config.heads:
            self.point_head = PointHead(config, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B V H W 3"],
        view_counts: Int[Array, " B"] | None = None,
        *,
        remat: bool = False,
    ) -> dict[str, Float[Array, "..."]]:
        """Everything the model predicts from colours in [0, 1].

        Args:
          images: see `Aggregator`.
          view_counts: see `Aggregator`.
          remat: see `Aggregator`.

        Returns:
          `tokens` [B, V, P, 2C], the last layer's; by head `poses` [I, B, V, 9]; `depth`
          [B, V, H, W, 1] and `depth_confidence` [B, V, H, W]; `points` [B, V, H, W, 3] and
          `points_confidence` [B, V, H, W].
        """
        config, size = self.config, images.shape[2:4]
        dense = [head for head in ("depth", "point") if head in config.heads]
        layers = {config.depth - 1}.union(*(getattr(config, f"{h}_head").layers for h in dense))
        layers = tuple(sorted(layers))
        kept = self.aggregator(images, view_counts, layers=layers, remat=remat)
        tokens = dict(zip(layers, kept, strict=True))
        out = {"tokens": tokens[config.depth - 1]}
        if "camera" in config.heads:
            out["poses"] = self.camera_head(out["tokens"], view_counts)
        if "depth" in config.heads:
            asked = [tokens[layer] for layer in config.depth_head.layers]
            out["depth"], out["depth_confidence"] = self.depth_head(asked, size)
        if "point" in config.heads:
            asked = [tokens[layer] for layer in config.point_head.layers]
            out["points"], out["points_confidence"] = self.point_head(asked, size)
        return out
