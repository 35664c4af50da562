"""Name table of Qwen3: Hugging Face `Qwen3ForCausalLM` <-> `jaxvlm.models.qwen3.Qwen3`."""

import re
from collections.abc import Mapping

import numpy as np

from convert.table import LINEAR, Rule, linear
from jaxvlm.errors import UserError
from jaxvlm.models.qwen3 import Qwen3Config


def rules(config: Qwen3Config) -> list[Rule]:
    """The table; a tied model has no `lm_head.weight`, as in published safetensors."""
    layer = "model.layers.{i}"
    table = [
        Rule("model.embed_tokens.weight", "embed_tokens/embedding"),
        Rule("model.norm.weight", "norm/scale"),
        Rule(f"{layer}.input_layernorm.weight", "layers/input_norm/scale"),
        Rule(f"{layer}.post_attention_layernorm.weight", "layers/post_attention_norm/scale"),
    ]
    for name in ("q_norm", "k_norm"):
        table.append(Rule(f"{layer}.self_attn.{name}.weight", f"layers/attn/{name}/scale"))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        table += linear(f"{layer}.self_attn.{name}", f"layers/attn/{name}", bias=False)
    for name in ("gate_proj", "up_proj", "down_proj"):
        table += linear(f"{layer}.mlp.{name}", f"layers/mlp/{name}", bias=False)
    if not config.tie_embeddings:
        table.append(Rule("lm_head.weight", "lm_head/kernel", LINEAR))
    return table


def ignored(config: Qwen3Config, tensors: Mapping[str, np.ndarray], prefix: str = "") -> list[str]:
    """What `table.to_jax` may ignore: a tied model's `lm_head.weight` that equals the embeddings.

    `prefix` stands before the keys.

    Raises:
      UserError: the model is tied by its configuration, but not in the file.
    """
    head = f"{prefix}lm_head.weight"
    if not config.tie_embeddings or head not in tensors:
        return []
    if not same_rows(tensors, prefix):
        raise UserError(
            f"{head!r} differs from '{prefix}model.embed_tokens.weight', but the configuration "
            "ties them; set tie_word_embeddings to false in config.json"
        )
    return [re.escape(head)]


def same_rows(tensors: Mapping[str, np.ndarray], prefix: str = "") -> bool:
    """Whether `lm_head` holds the embeddings, bit for bit."""
    head = tensors[f"{prefix}lm_head.weight"]
    embedding = tensors[f"{prefix}model.embed_tokens.weight"]
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    # Not the values: a NaN is equal to nothing.
    head, embedding = (np.ascontiguousarray(x).view(np.uint8) for x in (head, embedding))
    return np.array_equal(head, embedding)
