"""The page that an export carries: what its files are and how they fit together."""

from collections.abc import Iterable

from convert.stored import Stored

_WHAT = {
    "language": ("model-*.safetensors", "Qwen3, as `transformers` names it"),
    "projector": ("projector.safetensors", "visual tokens to tokens of the language model"),
    "geometry": ("geometry.safetensors", "cameras and depths to tokens of the language model"),
    "vision": ("vision.safetensors", "VGGT's aggregator, as its official code names it"),
}


def hugging_face(stored: Stored, written: Iterable[str]) -> str:
    """The model card of a Hugging Face folder."""
    written = tuple(written)
    lines = ["---", "library_name: transformers", "tags: [jaxvlm]", "---", ""]
    lines += ["# A language model that sees rooms, exported by jaxvlm", ""]
    lines += [f"From `{stored.source}`.", "", "| file | what | began as |", "| --- | --- | --- |"]
    lines += [f"| `{_WHAT[p][0]}` | {_WHAT[p][1]} | {stored.origin(p)} |" for p in written]
    if "vision" in stored.parts and "vision" not in written:
        lines += [
            "",
            f"The images go through VGGT, which was not trained: {stored.origin('vision')}.",
        ]
    if "language" in written:
        lines += ["", "The language model alone answers text:", "", "```python", *_LOAD, "```"]
    if "projector" in written:
        lines += ["", *_together(stored)]
    lines += ["", "The licences of what it was made from hold for it too.", ""]
    return "\n".join(lines)


def original(stored: Stored) -> str:
    """The page beside `pytorch_model_fp32/`."""
    names = "`vision_model.*`, `projector.*`, `geom_head.*`, `text_model.*`"
    return "\n".join(
        [
            "# Weights in the original's layout, exported by jaxvlm",
            "",
            f"From `{stored.source}`. `pytorch_model_fp32/` holds a state dict in shards: {names},",
            "those of them that the model has. VGGT's heads are in it only where they were",
            "imported; load `projector.` and `geom_head.` with `strict=True`.",
            "",
            "The licences of what it was made from hold for it too.",
            "",
        ]
    )


_LOAD = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "model = AutoModelForCausalLM.from_pretrained(folder)",
    "tokenizer = AutoTokenizer.from_pretrained(folder)",
)


def _together(stored: Stored) -> list[str]:
    """How the parts make an answer."""
    projector = stored.parts["projector"]
    lines = [
        "## How the parts fit together",
        "",
        f"1. The last layer's tokens of VGGT's aggregator, all views, {projector.in_dim} wide, are",
        f"   the context of the projector: {projector.num_latents} latents {projector.latent_dim} "
        f"wide, {projector.num_layers} layers of {projector.num_heads} heads (cross-attention,",
        "   residual, LayerNorm, MLP with erf GELU, residual, LayerNorm).",
    ]
    if "geometry" in stored.parts:
        lines += [
            "2. The geometry head (Linear, SiLU, Linear) makes one token of each view's 37",
            "   numbers; they stand before the projector's tokens.",
        ]
    return [
        *lines,
        f"{3 if 'geometry' in stored.parts else 2}. These vectors stand in the place of "
        "embeddings in `{question}\\n` *vectors* `\\n{answer}<|im_end|>`;",
        "   in `transformers`, pass the whole row as `inputs_embeds`.",
        "",
        "Sizes that no shape tells are in `jaxvlm.json`.",
    ]
