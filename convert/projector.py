"""Name table of projector and geometry head: the original's state dict <-> ours.

Paths start with `projector/` (`jaxvlm.models.perceiver.Perceiver`) and `geometry/`
(`jaxvlm.models.geometry.GeometryHead`), as in the tree of the whole model.
"""

from convert.table import LINEAR, Rule, linear, norm


def rules(part: str) -> list[Rule]:
    """The table of `"projector"` or `"geometry"`.

    Torch's fused `in_proj_weight` has q, k, v on its first axis, ours on its last.
    """
    if part == "geometry":
        return [
            *linear("geom_head.0", "geometry/in_proj"),
            *linear("geom_head.2", "geometry/out_proj"),
        ]
    layer, ours = "projector.layers.{i}", "projector/layers"
    return [
        Rule("projector.latents", "projector/latents"),
        *linear("projector.in_proj", "projector/in_proj"),
        Rule(f"{layer}.self_attn.in_proj_weight", f"{ours}/attn/qkv/kernel", LINEAR),
        Rule(f"{layer}.self_attn.in_proj_bias", f"{ours}/attn/qkv/bias"),
        *linear(f"{layer}.self_attn.out_proj", f"{ours}/attn/out_proj"),
        *norm(f"{layer}.norm1", f"{ours}/norm1"),
        *linear(f"{layer}.mlp.0", f"{ours}/mlp/fc1"),
        *linear(f"{layer}.mlp.3", f"{ours}/mlp/fc2"),
        *norm(f"{layer}.norm2", f"{ours}/norm2"),
        *linear("projector.out_proj", "projector/out_proj"),
    ]
