"""Checks of a configuration's values, before anything is loaded."""

import math

from jaxvlm.errors import UserError
from jaxvlm.paths import flatten

# Fields that must be at least this.
_AT_LEAST = {
    "seed": 0,
    "model.language.rms_norm_eps": 1e-30,
    "model.language.rope_theta": 1,
    "text.max_length": 8,
    "data.image_size": 14,
    "data.image_height": 0,
    "data.num_views": 1,
    "data.features.variants": 1,
    "data.row_length": 8,
    "data.row_sets": 1,
    "data.row_views": 0,
    "data.row_labels": 1,
    "data.questions_per_set": 1,
    "data.num_workers": 0,
    "loss.language": 0,
    # A label that counts nothing is none, and could not be wrong.
    "loss.finer_digits": 1e-6,
    "loss.answers": 1e-6,
    "loss.action_json": 0,
    "loss.geometry_consistency": 0,
    "train.max_steps": 1,
    "train.rows_per_device": 1,
    "train.accumulation": 1,
    "train.log_every": 1,
    "train.histograms_every": 0,
    "train.save_every": 1,
    "train.keep": 1,
    "train.max_skipped": 1,
    "train.eval_every": 0,
    "train.eval_samples": 1,
    "train.watchdog_minutes": 0,
    "evaluation.max_new_tokens": 1,
    "evaluation.batch_sets": 1,
    "evaluation.batch_questions": 1,
    "optimizer.eps": 1e-30,
    "optimizer.gradient_clip": 1e-12,
    "optimizer.weight_decay": 0,
}
# Tokens, more than any model reads.
_LONGEST = 2**20
_AT_MOST = {"data.row_length": _LONGEST, "evaluation.max_new_tokens": _LONGEST}
# Numbers of model.* that may be 0; all others are sizes.
_MAY_BE_ZERO = ("language/frozen_layers", "language/lora/rank", "action/ffn_dim")
_FRACTIONS = (
    "data.view_dropout",
    "data.augment.color_jitter",
    "optimizer.warmup_ratio",
    "optimizer.decay_ratio",
    "optimizer.final_ratio",
)
_BELOW_ONE = (
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.momentum",
    "data.augment.random_crop",
    "data.held_out",
)
_CHOICES = {
    "precision": ("bfloat16", "float32"),
    "model.geometry.mode": ("per_view", "pooled", "none"),
    "train.remat": ("none", "dots", "full", "auto"),
    "train.best_by": ("exact_match", "loss"),
    "optimizer.offload": ("device", "host"),
    "optimizer.kernels": ("adamw", "muon"),
    "text.template": ("plain", "chat"),
    "data.on_bad_record": ("error", "skip"),
    "data.geometry_convention": ("first_camera", "original"),
    "data.resize": ("short_side", "crop", "pad"),
    "data.features.dtype": ("bfloat16", "float32"),
}


def check(config) -> None:
    """Raises a UserError that names the first field with an impossible value."""
    for name, least in _AT_LEAST.items():
        # "auto" is a number once the run starts.
        if isinstance(_get(config, name), str):
            continue
        if not least <= _get(config, name) < math.inf:
            raise UserError(f"{name}={_get(config, name)}: expected at least {least}")
    if config.seed >= 2**32:
        raise UserError(f"seed={config.seed}: expected less than 2**32")
    for name, value in flatten(config.model.to_dict()).items():
        least = 0 if name in _MAY_BE_ZERO else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise UserError(f"model.{name.replace('/', '.')}={value}: expected at least {least}")
    for name in _BELOW_ONE:
        if not 0 <= _get(config, name) < 1:
            raise UserError(f"{name}={_get(config, name)}: expected at least 0 and less than 1")
    for name in _FRACTIONS:
        if not 0 <= _get(config, name) <= 1:
            raise UserError(f"{name}={_get(config, name)}: expected a fraction from 0 to 1")
    for name, choices in _CHOICES.items():
        if _get(config, name) not in choices:
            raise UserError(f"{name}={_get(config, name)!r}: expected one of {choices}")
    for name, rate in config.optimizer.learning_rate.items():
        if not 0 <= rate < math.inf:
            raise UserError(f"optimizer.learning_rate.{name}={rate}: expected a number from 0")
    for name, most in _AT_MOST.items():
        if _get(config, name) > most:
            raise UserError(f"{name}={_get(config, name)}: expected at most {most}")
    if not all(isinstance(root, str) for root in config.data.image_roots):
        raise UserError(f"data.image_roots={config.data.image_roots}: expected names of folders")
    if config.data.row_length < config.text.max_length:
        raise UserError(
            f"data.row_length={config.data.row_length} is shorter than "
            f"text.max_length={config.text.max_length}"
        )
    if config.data.view_dropout == 1:
        raise UserError("data.view_dropout=1 would leave out every view")
    packed = config.data.pack and config.data.features.folder is None
    if packed and 0 < config.data.row_views < config.data.num_views:
        raise UserError(
            f"data.row_views={config.data.row_views}: a row holds a whole image set, so expected "
            f"at least {config.data.num_views} (data.num_views), or 0"
        )
    patch = config.model.vision.patch_size
    for name in ("image_size", "image_height"):
        if config.data[name] % patch:
            raise UserError(
                f"data.{name}={config.data[name]} is no multiple of model.vision.patch_size={patch}"
            )
    _check_losses(config)
    if config.init_from == "":
        raise UserError("init_from='': expected the workdir of a run, or None")
    _check_features(config)


def _check_losses(config) -> None:
    """Weights of losses, and the head that two of them are of."""
    loss = config.loss
    measured = max(loss.action_json, loss.geometry_consistency)
    if measured and not config.model.action.ffn_dim:
        raise UserError(
            "loss.action_json and loss.geometry_consistency are of the action head, and "
            "model.action.ffn_dim=0 has none; set it (model.language.hidden_size is usual)"
        )
    if config.model.action.ffn_dim and not measured:
        raise UserError(
            "the action head would learn nothing: set loss.action_json, or model.action.ffn_dim=0"
        )
    if not max(measured, loss.language):
        raise UserError("loss.language=0.0: nothing would be learnt")
    if loss.geometry_consistency and config.data.geometry_convention != "first_camera":
        raise UserError(
            'loss.geometry_consistency needs data.geometry_convention="first_camera", the frame '
            "that actions are learnt in"
        )


def _check_features(config) -> None:
    """What a feature cache cannot serve."""
    data = config.data
    if config.evaluation.features and data.features.folder is None:
        raise UserError("evaluation.features=True reads data.features.folder, which is None")
    if data.features.folder is None:
        return
    if not data.features.folder:
        raise UserError("data.features.folder='': expected the name of a folder, or None")
    if data.blind:
        raise UserError("data.blind shows no images; set data.features.folder=None")
    for name, strength in data.augment.items():
        if strength:
            raise UserError(
                f"data.augment.{name}={strength}: a feature cache holds what VGGT made of the "
                "images as they are; set it to 0, or data.features.folder=None"
            )


def _get(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config
