"""VGGT's aggregator and the original's projector in PyTorch, by the names of their checkpoints.

Written as their authors' users run them: one linear map for queries, keys and values, and
`scaled_dot_product_attention`, which takes FlashAttention where there is a GPU.

Axes: B batch, V views, H W pixels, P tokens a view, T tokens, C width, N heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.vggt.config import VGGTConfig

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
    """Self-attention; the aggregator's normalises and rotates queries and keys."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attends among the T tokens of [B, T, C]."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = _rotate(query, rotation), _rotate(key, rotation)
        out = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack((-second, first), dim=-2).flatten(-3)
    return (x * cos + turned * sin).to(x.dtype)


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the last axis."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each behind a norm and scaled."""

    def __init__(self, width: int, heads: int, ratio: float, eps: float, qk_norm: bool):
        super().__init__()
        hidden = int(width * ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, qk_norm)
        self.ls1, self.ls2 = Scale(width), Scale(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Tokens [B, T, C] after both."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.ls2(self.mlp["fc2"](hidden))


class Embed(nn.Module):
    """DINOv2's ViT with registers."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        width, side = config.embed_dim, config.patch_size
        self.side = side
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, side, side)})
        positions = 1 + (config.img_size // side) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList(
            Block(width, config.vit_heads, config.mlp_ratio, 1e-6, False)
            for _ in range(config.vit_depth)
        )
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to their patches' tokens [B, S, C]."""
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        x = x + self._positions(*images.shape[-2:])
        registers = self.register_tokens.expand(len(x), -1, -1)
        x = torch.cat((x[:, :1], registers, x[:, 1:]), 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + registers.shape[1] :]

    def _positions(self, height: int, width: int) -> Tensor:
        rows, columns = height // self.side, width // self.side
        table = self.pos_embed
        if rows * columns == table.shape[1] - 1 and height == width:
            return table
        side = round((table.shape[1] - 1) ** 0.5)
        grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        grid = grid.flatten(2).transpose(1, 2).to(table.dtype)
        return torch.cat((table[:, :1], grid), 1)


class Aggregator(nn.Module):
    """Attention within a view and across the views in turn; returns what every pair made."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embed = Embed(config)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, width))
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(
                Block(width, config.num_heads, config.mlp_ratio, 1e-5, True)
                for _ in range(config.depth)
            )
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, V, 3, H, W] in [0, 1] to tokens [B, V, P, 2C] of each pair of blocks."""
        batch, views = images.shape[:2]
        mean, std = (images.new_tensor(x).view(3, 1, 1) for x in (_MEAN, _STD))
        patches = self.patch_embed(((images - mean) / std).flatten(0, 1))
        special = torch.cat((self.camera_token, self.register_token), 2)
        special = special[:, [0] + [1] * (views - 1)].expand(batch, -1, -1, -1).flatten(0, 1)
        x = torch.cat((special, patches), 1)
        per_view, width = x.shape[1:]
        within = self._rotation(*images.shape[-2:], x.device)
        across = tuple(table.repeat(views, 1) for table in within)
        found = []
        for frame, cross in zip(self.frame_blocks, self.global_blocks, strict=True):
            x = frame(x.reshape(batch * views, per_view, width), within)
            one = x.reshape(batch, views, per_view, width)
            x = cross(x.reshape(batch, views * per_view, width), across)
            found.append(torch.cat((one, x.reshape(one.shape)), -1))
        return found

    def _rotation(self, height: int, width: int, device) -> tuple[Tensor, Tensor]:
        config = self.config
        half = config.embed_dim // config.num_heads // 2
        rows, columns = height // config.patch_size, width // config.patch_size
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) + 1
        places = torch.cat((places.new_zeros(config.special_tokens, 2), places)).to(device)
        turns = config.rope_freq ** (-torch.arange(0, half, 2, device=device) / half)
        angles = (places[:, :, None] * turns.repeat(2)).flatten(1)
        return angles.cos(), angles.sin()


class Projector(nn.Module):
    """The original's Perceiver: latents attend to the visual tokens, layer after layer."""

    def __init__(self, config: PerceiverConfig):
        super().__init__()
        width = config.latent_dim
        self.latents = nn.Parameter(torch.zeros(config.num_latents, width))
        self.in_proj = nn.Linear(config.in_dim, width)
        self.layers = nn.ModuleList(_ProjectorLayer(config) for _ in range(config.num_layers))
        self.out_proj = nn.Linear(width, config.out_dim)

    def forward(self, context: Tensor) -> Tensor:
        """Context [B, C, I] to tokens [B, M, O]."""
        context = self.in_proj(context)
        latents = self.latents.to(context.dtype).expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.out_proj(latents)


class _ProjectorLayer(nn.Module):
    def __init__(self, config: PerceiverConfig):
        super().__init__()
        width = config.latent_dim
        self.self_attn = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.ffn_dim), nn.GELU(), nn.Identity(),
            nn.Linear(config.ffn_dim, width),
        )  # fmt: skip

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        read = self.self_attn(latents, context, context, need_weights=False)[0]
        latents = self.norm1(latents + read)
        return self.norm2(latents + self.mlp(latents))
