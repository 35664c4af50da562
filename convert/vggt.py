"""The name table of VGGT: facebook/VGGT-1B's state dict and our parameter tree."""

from convert.table import CONV, CONV_TRANSPOSE, Rule, linear, norm
from jaxvlm.models.vggt.config import HEADS, VGGTConfig

# The tracker follows query points from image to image; nothing here uses it, so it is not built.
IGNORED = (r"track_head\..*",)


def ignored(config: VGGTConfig) -> tuple[str, ...]:
    """Regular expressions of keys without a counterpart: `IGNORED` and the heads left out."""
    return IGNORED + tuple(rf"{head}_head\..*" for head in HEADS if head not in config.heads)


def rules(config: VGGTConfig) -> list[Rule]:
    """Rules for every parameter of `VGGT(config)`."""
    table = _patch_embed(config)
    table += [
        Rule(f"aggregator.{x}", f"aggregator/{x}") for x in ("camera_token", "register_token")
    ]
    for kind in ("frame_blocks", "global_blocks"):
        table += _block(f"aggregator.{kind}.{{i}}", f"aggregator/{kind}", qk_norm=True)
    if "camera" in config.heads:
        table += _camera()
    for head in ("depth", "point"):
        if head in config.heads:
            table += _dense(f"{head}_head")
    return table


def _conv(key: str, path: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{key}.weight", f"{path}/kernel", CONV)]
    return rules + [Rule(f"{key}.bias", f"{path}/bias")] * bias


def _conv_transpose(key: str, path: str) -> list[Rule]:
    return [
        Rule(f"{key}.weight", f"{path}/kernel", CONV_TRANSPOSE),
        Rule(f"{key}.bias", f"{path}/bias"),
    ]


def _block(key: str, path: str, qk_norm: bool = False) -> list[Rule]:
    table = norm(f"{key}.norm1", f"{path}/norm1") + norm(f"{key}.norm2", f"{path}/norm2")
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        table += linear(f"{key}.{name}", f"{path}/{name.replace('.', '/')}")
    if qk_norm:
        for name in ("q_norm", "k_norm"):
            table += norm(f"{key}.attn.{name}", f"{path}/attn/{name}")
    return table + [Rule(f"{key}.{name}.gamma", f"{path}/{name}") for name in ("ls1", "ls2")]


def _patch_embed(config: VGGTConfig) -> list[Rule]:
    key, path = "aggregator.patch_embed", "aggregator/patch_embed"
    if config.patch_embed == "conv":
        return _conv(f"{key}.proj", f"{path}/proj")
    table = _conv(f"{key}.patch_embed.proj", f"{path}/patch_embed") + norm(
        f"{key}.norm", f"{path}/norm"
    )
    for name in ("cls_token", "pos_embed", "register_tokens", "mask_token"):
        table.append(Rule(f"{key}.{name}", f"{path}/{name}"))
    return table + _block(f"{key}.blocks.{{i}}", f"{path}/blocks")


def _camera() -> list[Rule]:
    key = "camera_head"
    table = _block(f"{key}.trunk.{{i}}", f"{key}/trunk")
    table.append(Rule(f"{key}.empty_pose_tokens", f"{key}/empty_pose_tokens"))
    for name in ("token_norm", "trunk_norm"):
        table += norm(f"{key}.{name}", f"{key}/{name}")
    table += linear(f"{key}.embed_pose", f"{key}/embed_pose")
    table += linear(f"{key}.poseLN_modulation.1", f"{key}/modulation")
    for name in ("fc1", "fc2"):
        table += linear(f"{key}.pose_branch.{name}", f"{key}/pose_branch/{name}")
    return table


def _dense(key: str) -> list[Rule]:
    scratch = f"{key}.scratch"
    table = norm(f"{key}.norm", f"{key}/norm")
    for i in range(4):
        table += _conv(f"{key}.projects.{i}", f"{key}/project{i + 1}")
        table += _conv(f"{scratch}.layer{i + 1}_rn", f"{key}/layer{i + 1}", bias=False)
        table += _fusion(
            f"{scratch}.refinenet{i + 1}", f"{key}/fuse{i + 1}", units=(2,) if i == 3 else (1, 2)
        )
    for i in range(2):
        table += _conv_transpose(f"{key}.resize_layers.{i}", f"{key}/resize{i + 1}")
    table += _conv(f"{key}.resize_layers.3", f"{key}/resize4")
    outputs = ("output_conv1", "output_conv2.0", "output_conv2.2")
    for i, name in enumerate(outputs, start=1):
        table += _conv(f"{scratch}.{name}", f"{key}/output{i}")
    return table


def _fusion(key: str, path: str, units: tuple[int, ...]) -> list[Rule]:
    table = _conv(f"{key}.out_conv", f"{path}/out_conv")
    for unit in units:
        for name in ("conv1", "conv2"):
            table += _conv(f"{key}.resConfUnit{unit}.{name}", f"{path}/unit{unit}/{name}")
    return table
