"""Stage 2: actions in rooms as JSON, beginning with a Stage 1 run.

    python -m jaxvlm.train --config configs/stage2_arkit.py

`runs/stage1` must be there (its best update is taken), and records as docs/data.md makes them.
Variants stand behind a colon, several with commas between them, e.g. `:roomplan,lora`:

    roomplan  exports of Apple's RoomPlan instead of ARKitScenes
    rooms     the demo's model and procedural rooms, beginning with the demo's run
    mixed     questions of Stage 1 too, so that they are not forgotten
    lora      Qwen3-4B is frozen; adapters of rank 32 learn beside its attention but in the first
              two layers
"""

import importlib.util
from pathlib import Path

from jaxvlm.config import default
from jaxvlm.errors import UserError


def get_config(argument: str = ""):
    """The original's documented Stage 2; `argument` names variants of it."""
    names = list(filter(None, argument.split(",")))
    for name in names:
        if name not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise UserError(f"configs/stage2_arkit.py knows the variants {known}; found {name!r}")
    if "rooms" in names:
        config = _file("demo").get_config()
        _rooms(config)
    else:
        config = default()
        _full_size(config)
    config.model.action.ffn_dim = config.model.language.hidden_size
    if {"rooms", "roomplan"} <= set(names):
        raise UserError("configs/stage2_arkit.py: rooms and roomplan are two data sets, give one")
    for name, change in VARIANTS.items():
        if name in names:
            change(config)
    return config


def _full_size(config):
    config.init_from = "runs/stage1"
    config.loss.language = config.loss.action_json = 1.0
    config.loss.geometry_consistency = 0.5
    data = config.data
    for split in ("train", "test"):
        data[split] = ({"path": f"data/processed/arkit/{split}.jsonl", "weight": 1.0,
                        "task": "arkit_actions"},)  # fmt: skip
    data.image_size = 448
    data.num_views = 10
    data.view_dropout = 0.2
    data.held_out = 0.02
    config.text.max_length = 4096
    # An action is some 60 labels.
    data.row_labels = 1536

    optimizer = config.optimizer
    optimizer.learning_rate.language = 2e-5
    for part in ("projector", "geometry", "action"):
        optimizer.learning_rate[part] = 2e-4
    optimizer.warmup_ratio = 0.05
    optimizer.weight_decay = 0.05

    # 14 rows of about 18 actions: the original's 4 x 64 samples a GPU and update.
    config.train.rows_per_device = 1
    config.train.accumulation = 14
    config.train.remat = "auto"
    # The original's 10,000 micro-batches.
    config.train.max_steps = 156
    config.train.save_every = 50
    config.train.eval_every = 50
    # No action is right to the centimetre.
    config.train.best_by = "loss"
    config.evaluation.max_new_tokens = 128


def _rooms(config):
    config.init_from = "runs/demo"
    # Centimetres of a place not known teach nothing, and a centre a metre off projects to anywhere
    # in a view from inside the room: both drown what turns the small model's gaze.
    config.loss.language, config.loss.finer_digits = 1.0, 0.4
    config.loss.action_json, config.loss.geometry_consistency = 1.0, 0.02
    data = config.data
    for split in ("train", "val", "test"):
        data[split] = ({"path": f"runs/demo/rooms/actions_{split}.jsonl", "weight": 1.0},)
    # Where `make demo` leaves them; jaxvlm.cache_features adds what actions are shown.
    data.features.folder, data.features.dtype = "runs/demo/features", "float32"
    # An action a row: 19 visual tokens, 26 of the instruction, 62 labels. Many rooms an update
    # teach sooner where things are than many actions a room.
    data.row_length, data.row_labels, data.questions_per_set = 128, 80, 1
    config.train.rows_per_device = 16
    config.optimizer.learning_rate.action = 1.5e-3
    config.optimizer.warmup_ratio = 0.05
    # Where things are goes on being learnt as long as the rate stands.
    config.optimizer.decay_ratio = 0.5
    config.train.max_steps = 14_000
    config.train.eval_every, config.train.best_by = 1000, "loss"
    config.evaluation.max_new_tokens = 128


def _roomplan(config):
    for split in ("train", "test"):
        path = f"data/processed/roomplan/{split}.jsonl"
        config.data[split] = ({"path": path, "weight": 1.0, "task": "roomplan"},)


def _mixed(config):
    """As many questions as actions, and one counts about as much as the other's text or more."""
    small = config.init_from == "runs/demo"
    stage1 = _file("demo" if small else "stage1").get_config().data
    for split in ("train", "val", "test"):
        total = sum(source["weight"] for source in stage1[split])
        questions = [source | {"weight": source["weight"] / total} for source in stage1[split]]
        config.data[split] = (*config.data[split], *questions)
    # An action is some 60 labels, an answer two to four.
    config.loss.answers = 20.0
    if small:
        # Beside answers the head learns late, so it counts more; and answers so much more that they
        # are not forgotten for it.
        config.loss.action_json, config.loss.geometry_consistency = 4.0, 0.08
        config.loss.answers = 60.0
        # An action and a question or two of the same room, and so a longer update.
        config.train.max_steps = 10_000
        config.data.row_length, config.data.questions_per_set = 144, 3


def _lora(config):
    lora = config.model.language.lora
    lora.rank, lora.alpha, lora.dropout = 32, 64.0, 0.05
    lora.targets = ("q_proj", "v_proj", "o_proj")
    config.model.language.frozen_layers = 2
    kept = tuple(rule for rule in config.parameters if not rule[0].startswith("language/"))
    rules = ("language/frozen_layers/.*", "frozen"), ("language/.*lora_[ab]", "lora")
    config.parameters = (*kept, *rules, ("language/.*", "frozen"))


def _file(name):
    """A file that stands beside this one; configs/ is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# In the order in which they are made, however they are named: questions are added to what there is.
# "rooms" is seen to above.
VARIANTS = {"roomplan": _roomplan, "rooms": lambda config: None, "mixed": _mixed, "lora": _lora}
