"""The configuration: one schema with every field, files that change it, overrides, checks.

A configuration file defines `get_config(argument)`, which starts from `default()` and returns it.
`load("configs/stage1.py:debug", ["model.language.weights=…"])` reads one.
"""

import ast
import contextlib
import difflib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxvlm.errors import UserError

# A number that is chosen at the start.
AUTO = "auto"


def default() -> ConfigDict:
    """Every field, with the full-size model and the original's Stage 1 values. Locked."""
    config = ConfigDict(
        {
            # Seeds initialisation, order, mixture, view dropout and dropout.
            "seed": 0,
            # "bfloat16" or "float32": dtype of the computation; trained masters are float32.
            "precision": "bfloat16",
            # A run whose parameters this one begins with: its workdir (its best update, else its
            # newest) or one of its checkpoints/<update>; the model as there. Else None.
            "init_from": None,
            "model": {
                "vision": {
                    # A folder of imported weights, "jaxvlm:rooms" (shipped), or None: random.
                    "weights": "third_party/vggt/jaxvlm",
                    "img_size": 518,
                    "patch_size": 14,
                    "patch_embed": "vit",
                    "embed_dim": 1024,
                    "depth": 24,
                    "num_heads": 16,
                    "vit_depth": 24,
                    "vit_heads": 16,
                },
                "projector": {
                    # A folder of imported weights that holds a projector, or None: random.
                    "weights": None,
                    "latent_dim": 4096,
                    "num_latents": 128,
                    "num_heads": 8,
                    "num_layers": 6,
                    "ffn_dim": 16384,
                    "dropout": 0.0,
                    # "all" views' tokens, or the "first" context_tokens (original checkpoints).
                    "context": "all",
                    "context_tokens": 128,
                },
                # mode: "per_view", "pooled" (original checkpoints; num_tokens copies) or "none".
                "geometry": {"weights": None, "mode": "per_view", "num_tokens": 8},
                "language": {
                    "weights": "third_party/qwen3/jaxvlm",
                    "vocab_size": 151936,
                    "hidden_size": 2560,
                    "num_layers": 36,
                    "num_heads": 32,
                    "num_kv_heads": 8,
                    "head_dim": 128,
                    "intermediate_size": 9728,
                    "rms_norm_eps": 1e-6,
                    "rope_theta": 5e6,
                    "tie_embeddings": True,
                    # So many first layers have names of their own, language/frozen_layers/…, which
                    # the rules below freeze.
                    "frozen_layers": 0,
                    # Adapters beside linear maps of the other layers: rank 0 for none, else their
                    # rules are ("language/.*lora_[ab]", "lora") and ("language/.*", "frozen").
                    "lora": {
                        "rank": 0,
                        "alpha": 32.0,
                        "dropout": 0.05,
                        "targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
                    },
                },
                # The head that measures a box at the token <action>: width of its hidden layer, 0
                # for no head.
                "action": {"ffn_dim": 0},
            },
            "text": {
                # A folder with tokenizer.json, a hub name, or "jaxvlm:rooms" (shipped).
                "tokenizer": "Qwen/Qwen3-4B-Instruct-2507",
                # "plain" (the original's) or "chat" (Qwen's).
                "template": "plain",
                # Tokens a sample may have, visual tokens included.
                "max_length": 512,
            },
            "data": {
                # A tuple of {"path": path or glob, "weight": 1.0, "task": name}; an override may
                # give paths alone.
                "train": (),
                "val": (),
                "test": (),
                # Folders that relative image paths are tried in, after the record file's own.
                "image_roots": (".", "data/raw"),
                # "error", or "skip": leave records that fail a check of the audit out, counted.
                "on_bad_record": "error",
                # "first_camera", or "original" (converted checkpoints): jaxvlm/data/geometry.py.
                "geometry_convention": "first_camera",
                # Width of the frame that images are brought into, in pixels, and its height; 0 for
                # a square.
                "image_size": 448,
                "image_height": 0,
                # "short_side" (the original's), "crop" or "pad" (VGGT's): jaxvlm/data/framing.py.
                "resize": "short_side",
                # True decodes large JPEG files in a part of their size: faster, not quite the same.
                "jpeg_draft": False,
                "num_views": 8,
                "view_dropout": 0.3,
                # Brightness, contrast and saturation change by up to this fraction; windows are
                # shorter than the frame by up to this fraction. Never flips.
                "augment": {"color_jitter": 0.0, "random_crop": 0.0},
                # A folder of python -m jaxvlm.cache_features to read features from, or None: VGGT
                # runs in every step. With view dropout there are so many subsets of each set's
                # views. dtype: "bfloat16" or "float32".
                "features": {"folder": None, "variants": 8, "dtype": "bfloat16"},
                # True shows black images and no geometry: the text-only control.
                "blind": False,
                # Share of the training scenes that are kept for validation where data.val is empty.
                "held_out": 0.0,
                # False gives one sample a row, for looking into things.
                "pack": True,
                # Capacities of a packed row: tokens, image sets, views of all its sets together
                # (0: as view_dropout leaves them), labels. VGGT sees so many views of every row, be
                # they there or not; with cached features it sees none, and there is no limit.
                "row_length": 4096,
                "row_sets": 3,
                "row_views": 0,
                "row_labels": 256,
                "questions_per_set": 10,
                # Worker processes that read images; 0 reads in threads. Cached features are always
                # read in threads: nothing is computed, and processes would copy them once more.
                "num_workers": 4,
            },
            # Ordered (regular expression, group): the first that matches a parameter's path
            # decides. A group is "frozen" or a name of optimizer.learning_rate, with
            # ":no_decay" behind it for parameters that are not decayed.
            "parameters": (
                ("vision/.*", "frozen"),
                ("projector/.*(bias|scale)", "projector:no_decay"),
                ("projector/.*", "projector"),
                ("geometry/.*bias", "geometry:no_decay"),
                ("geometry/.*", "geometry"),
                ("language/.*lora_[ab]", "lora"),
                ("language/frozen_layers/.*", "frozen"),
                ("language/.*scale", "language:no_decay"),
                ("language/.*", "language"),
                ("action/.*bias", "action:no_decay"),
                ("action/.*", "action"),
            ),
            "optimizer": {
                "learning_rate": {
                    "language": 5e-6,
                    "projector": 2e-4,
                    "geometry": 2e-4,
                    "lora": 2e-4,
                    "action": 2e-4,
                },
                "warmup_ratio": 0.1,
                # In what fraction of the updates, the last, the rates fall; 1: once they are up.
                "decay_ratio": 1.0,
                # Learning rate at the end, as a fraction of the peak.
                "final_ratio": 0.0,
                "weight_decay": 0.01,
                "gradient_clip": 1.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                # Kernels of dense layers: "adamw", or "muon" with this momentum; all else is always
                # AdamW's.
                "kernels": "adamw",
                "momentum": 0.95,
                # "device", or "host": moments lie in the host's pinned memory, and come and go.
                "offload": "device",
            },
            "train": {
                # Updates of the parameters.
                "max_steps": 937,
                # Rows a device and micro-batch, or "auto": as many as fit, in fewer micro-batches;
                # micro-batches an update.
                "rows_per_device": 1,
                "accumulation": 8,
                # "none", "dots" or "full": what is recomputed backwards, layer by layer; or "auto":
                # the first of them that fits.
                "remat": "full",
                "log_every": 1,
                # Histograms of parameters and gradients in TensorBoard; 0 for none.
                "histograms_every": 0,
                "save_every": 50,
                # Checkpoints kept, the newest; the best by validation stays besides.
                "keep": 2,
                # Validation every so many updates (0: never), on so many samples; the best is that
                # with the highest "exact_match" or the lowest "loss".
                "eval_every": 0,
                "eval_samples": 512,
                "best_by": "exact_match",
                # Updates without a label, or with numbers that are not finite, are skipped; so many
                # in a row end the run.
                "max_skipped": 5,
                # Where nothing happens for so long, all stacks are shown and the run ends; 0 for
                # never.
                "watchdog_minutes": 30.0,
            },
            # Weights of the losses; one of 0 is not computed (jaxvlm/training/loss.py).
            "loss": {
                # Cross-entropy of the tokens of actions and answers; how much of the one before it
                # each token counts that follows on a digit of a number in an action; and how much
                # more than a token of an action one of an answer.
                "language": 1.0,
                "finer_digits": 1.0,
                "answers": 1.0,
                # Of the action head: its box in metres, and its centre in the images.
                "action_json": 0.0,
                "geometry_consistency": 0.0,
            },
            # Devices along each axis; -1 takes what is left. Both -1: parameters are split over one
            # machine's (8, or a smaller number that divides all) and copied among machines.
            "mesh": {"data": -1, "fsdp": -1},
            "evaluation": {
                "max_new_tokens": 32,
                # On each device: image sets that are encoded, and questions answered at a time.
                "batch_sets": 8,
                "batch_questions": 64,
                # Read data.features.folder instead of images.
                "features": False,
                # Actions are texts of the action language, and of their record's scene.
                "constrain_actions": True,
                # How tokens are chosen: temperature 0 takes the likeliest (generation/sampling.py).
                "sampling": {
                    "temperature": 0.0,
                    "top_k": 0,
                    "top_p": 1.0,
                    "repetition_penalty": 1.0,
                    "no_repeat_ngram": 0,
                    "seed": 0,
                },
            },
        }
    )
    return config.lock()


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads `path.py`, `path.py:argument` or a run's `config.json`, then applies overrides.

    Args:
      spec: the file, with an optional argument for its `get_config`.
      overrides: `field.path=value` with Python literals, or bare text for a text field.

    Raises:
      UserError: a missing or broken file, an unknown field (with the nearest name), a value of
        the wrong type.
    """
    path, _, argument = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"configuration file {path!r} does not exist; see configs/ for examples")
    config = _from_json(path) if path.endswith(".json") else _from_python(path, argument)
    for override in overrides:
        _override(config, override)
    return config


def _from_json(path: str) -> ConfigDict:
    config = default()
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: malformed JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(stored).__name__}")
    for name, value in _leaves(stored):
        group = name.removeprefix("optimizer.learning_rate.")
        if group != name and group not in config.optimizer.learning_rate:
            # A configuration file may add parameter groups; nothing else grows.
            with config.optimizer.learning_rate.unlocked() as rates:
                rates[group] = 0.0
        _assign(config, name, _tuples(value))
    return config


def _leaves(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    leaves = []
    for name, value in tree.items():
        deeper = _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        leaves += deeper if deeper is not None else [(prefix + name, value)]
    return leaves


def _tuples(value: object) -> object:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _from_python(path: str, argument: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("jaxvlm_config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"configuration {path!r} must be a .py file or a run's config.json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        # A KeyError's text is the quoted one.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        message = " ".join(str(text).replace("\\n", " ").split())
        raise UserError(f"{path}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config must return a configuration, found {config!r}")
    return config


def _override(config: ConfigDict, override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r} must have the form --config.field=value")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    _assign(config, name, value)


def _assign(config: ConfigDict, name: str, value: object) -> None:
    """Sets the field `a.b.c`, checking that it exists and the value's type fits."""
    *parents, last = name.split(".")
    node = config
    for depth, part in enumerate(parents):
        node = _field(node, part, ".".join(parents[:depth]))
    current = _field(node, last, ".".join(parents))
    if isinstance(current, ConfigDict):
        raise UserError(f"{name} is a group of fields ({', '.join(sorted(current))}), not a field")
    value = _checked(name, current, value)
    # "auto" stands where a number does.
    with node.ignore_type() if AUTO in (current, value) else contextlib.nullcontext():
        node[last] = value


def _field(node: object, name: str, where: str) -> object:
    if not isinstance(node, ConfigDict):
        raise UserError(f"the configuration field {where!r} has no fields of its own")
    if name not in node:
        close = difflib.get_close_matches(name, list(node), 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(node))}"
        full = f"{where}.{name}" if where else name
        raise UserError(f"unknown configuration field {full!r}: {hint}")
    return node[name]


def _checked(name: str, current: object, value: object) -> object:
    """`value` in the field's type."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"configuration field {name!r} is too large: {str(value)[:20]}…")
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if name in ("data.train", "data.val", "data.test") and isinstance(value, str | tuple | list):
        parts = (value,) if isinstance(value, str) else value
        return tuple({"path": p, "weight": 1.0} if isinstance(p, str) else p for p in parts)
    if name == "train.rows_per_device" and (value == AUTO or current == AUTO):
        if value != AUTO and not (isinstance(value, int) and not isinstance(value, bool)):
            raise UserError(f"configuration field {name!r} expects a number or {AUTO!r}")
        return value
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    optional = (str, type(None)) if name.endswith((".weights", ".folder", "init_from")) else ()
    if not isinstance(value, (type(current), *optional)) or (
        isinstance(value, bool) != isinstance(current, bool)
    ):
        expected = "text or None" if optional else f"{type(current).__name__} like {current!r}"
        raise UserError(f"configuration field {name!r} expects {expected}, found {value!r}")
    return value


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text that `load` reads back."""
    return json.dumps(config.to_dict(), indent=2) + "\n"
