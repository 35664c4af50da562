"""Stage 1: answers to questions about rooms, from ScanQA and SQA3D, with the full-size model.

    python -m jaxvlm.train --config configs/stage1.py

VGGT is frozen; the projector, the geometry head and all of Qwen3-4B learn. Variants stand behind a
colon, several with commas between them, e.g. `configs/stage1.py:lora,debug`:

    debug      100 updates
    long       30,000 updates
    safe       one question a row, 1 row x 4 micro-batches: the smallest batch
    lora       Qwen3-4B is frozen; adapters of rank 16 learn beside its attention
    projector  Qwen3-4B is frozen; only projector and geometry head learn
    bird       one image a question, as from rebuild_scanqa_sqa3d.py
"""

from jaxvlm.config import default
from jaxvlm.errors import UserError


def get_config(argument: str = ""):
    """The original's documented Stage 1; `argument` names variants of it."""
    config = default()
    data = config.data
    data.train, data.test = (
        tuple(
            {"path": f"data/processed/{name}/{split}_split.jsonl", "weight": weight, "task": name}
            for name, weight in (("scanqa", 0.7), ("sqa3d", 0.3))
        )
        for split in ("train", "test")
    )
    data.image_size = 448
    data.num_views = 8
    data.view_dropout = 0.3
    # Validation is on scenes of the training files: the test files must not choose a checkpoint.
    data.held_out = 0.02

    optimizer = config.optimizer
    optimizer.learning_rate.language = 5e-6
    optimizer.learning_rate.projector = optimizer.learning_rate.geometry = 2e-4
    optimizer.warmup_ratio = 0.1
    optimizer.weight_decay = 0.01
    optimizer.gradient_clip = 1.0

    # 8 rows of about 24 questions: the original's 6 x 32 samples a GPU and update.
    config.train.rows_per_device = 1
    config.train.accumulation = 8
    # Nothing is computed twice where memory allows.
    config.train.remat = "auto"
    # The original's 30,000 micro-batches.
    config.train.max_steps = 937
    config.train.save_every = 50
    config.train.log_every = 1
    config.train.eval_every = 50

    for name in filter(None, argument.split(",")):
        if name not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise UserError(f"configs/stage1.py knows the variants {known}; found {name!r}")
        VARIANTS[name](config)
    return config


def _debug(config):
    config.train.max_steps = 100


def _long(config):
    config.train.max_steps = 30_000


def _safe(config):
    config.data.pack = False
    config.train.rows_per_device = 1
    config.train.accumulation = 4


def _lora(config):
    lora = config.model.language.lora
    lora.rank, lora.alpha, lora.dropout = 16, 32.0, 0.05
    lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    config.parameters = _without_language(config, ("language/.*lora_[ab]", "lora"))


def _projector(config):
    config.parameters = _without_language(config)


def _without_language(config, *instead):
    """The rules with all of the language model frozen but what the rules `instead` say."""
    kept = tuple(rule for rule in config.parameters if not rule[0].startswith("language/"))
    return (*kept, *instead, ("language/.*", "frozen"))


def _bird(config):
    config.data.num_views = 1
    config.data.view_dropout = 0.0


VARIANTS = {"debug": _debug, "long": _long, "safe": _safe, "lora": _lora,
            "projector": _projector, "bird": _bird}  # fmt: skip
