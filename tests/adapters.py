"""The toy with imported weights and adapters (LoRA) beside them."""

import tiny

from jaxvlm.models.tree import load
from jaxvlm.models.vlm import abstract_vlm, vlm_config
from jaxvlm.paths import unflatten
from jaxvlm.training.loss import hidden_states, label_scores

LORA = {
    "model__language__lora__rank": 4,
    "model__language__lora__alpha": 8.0,
    "model__language__lora__targets": ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
}
PARTS = ("vision", "projector", "geometry", "language")
# Only adapters, the projector and the geometry head learn.
RULES = (
    ("vision/.*", "frozen"),
    ("(projector|geometry)/.*", "projector"),
    ("language/.*lora_[ab]", "lora"),
    ("language/.*", "frozen"),
)


def configured(records, weights, **changes):
    """The toy's configuration, every part of which has the imported `weights`."""
    names = {f"model__{part}__weights": str(weights) for part in PARTS}
    return tiny.config_for(records, **{**names, **changes})


def scores(config, params, batch):
    """The loss of every label."""
    model = load(abstract_vlm(vlm_config(config.model)), unflatten(params))
    return label_scores(model, hidden_states(model, batch), batch)[0]
