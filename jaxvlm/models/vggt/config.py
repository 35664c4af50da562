"""Sizes of VGGT; the defaults are those of the released VGGT-1B."""

import dataclasses
from typing import Literal

from jaxvlm.errors import UserError
from jaxvlm.models.flops import Flops

HEADS = ("camera", "depth", "point")


@dataclasses.dataclass(frozen=True)
class DPTConfig:
    """Sizes of a dense prediction head; the four `layers` are aggregator layers, from 0."""

    features: int = 256
    out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    layers: tuple[int, int, int, int] = (4, 11, 17, 23)


@dataclasses.dataclass(frozen=True)
class VGGTConfig:
    """Sizes of VGGT.

    Attributes:
      img_size: side in pixels of the square the ViT's positions were learnt on.
      patch_size: side of a patch in pixels.
      embed_dim: C, width of the aggregator; its output is 2C wide.
      depth: number of (frame, global) pairs of blocks.
      num_heads: attention heads of the aggregator's blocks.
      mlp_ratio: hidden width of every MLP over its input width.
      num_register_tokens: register tokens a view, and of the ViT.
      rope_freq: base of the rotary position embedding.
      init_values: LayerScale at initialisation (not of the ViT, which starts at 1).
      patch_embed: a ViT, or one convolution.
      vit_depth: blocks of the ViT.
      vit_heads: attention heads of the ViT.
      heads: prediction heads to build, out of "camera", "depth", "point".
      camera_trunk_depth: blocks of the camera head.
      camera_heads: attention heads of the camera head.
      depth_head: sizes of the depth head.
      point_head: sizes of the point head.
    """

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    rope_freq: float = 100.0
    init_values: float = 0.01
    patch_embed: Literal["vit", "conv"] = "vit"
    vit_depth: int = 24
    vit_heads: int = 16
    heads: tuple[str, ...] = ()
    camera_trunk_depth: int = 4
    camera_heads: int = 16
    depth_head: DPTConfig = DPTConfig()
    point_head: DPTConfig = DPTConfig()

    def __post_init__(self):
        if self.patch_embed not in ("vit", "conv"):
            raise UserError(f"vggt.patch_embed is {self.patch_embed!r}; expected 'vit' or 'conv'")
        unknown = sorted(set(self.heads) - set(HEADS))
        if unknown:
            raise UserError(f"vggt.heads names {unknown}; expected some of {list(HEADS)}")
        for name, size in (("img_size", self.patch_size), ("embed_dim", self.num_heads)):
            if getattr(self, name) % size:
                raise UserError(f"vggt.{name} is {getattr(self, name)}, not a multiple of {size}")
        if self.embed_dim // self.num_heads % 4:
            raise UserError(
                f"vggt.embed_dim / vggt.num_heads is {self.embed_dim // self.num_heads}; "
                "the 2-D rotary embedding needs a multiple of 4"
            )

    @property
    def special_tokens(self) -> int:
        """Tokens a view before its patches: the camera token and the registers."""
        return 1 + self.num_register_tokens

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"images of {height} x {width} pixels (height x width) cannot be cut into patches "
                f"of {self.patch_size}: resize or crop them so that both sides are multiples "
                f"of {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def tokens_per_view(self, height: int, width: int) -> int:
        """P, the tokens of one view of `height` x `width` pixels."""
        rows, columns = self.grid(height, width)
        return self.special_tokens + rows * columns

    def flops(self, views: float, height: int, width: int, squares: float | None = None) -> Flops:
        """Operations of the aggregator; the ViT counts when there is one.

        Args:
          views: of one image set, or of many together.
          height: of the images, in pixels.
          width: of the images, in pixels.
          squares: the sum of the squares of the sets' views; of one set by default.
        """
        per_view = self.tokens_per_view(height, width)
        tokens = views * per_view
        squares = views**2 if squares is None else squares
        vit = self.vit_depth if self.patch_embed == "vit" else 0
        blocks = vit + 2 * self.depth
        # Query, key, value and output are 4 C², the MLP 2 C² times its ratio.
        linear = 2 * tokens * self.embed_dim**2 * (4 + 2 * self.mlp_ratio) * blocks
        pairs = per_view**2 * (views * (vit + self.depth) + squares * self.depth)
        return Flops(linear, 4 * self.embed_dim * pairs)
