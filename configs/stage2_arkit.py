"""Stage 2: actions in rooms as JSON, from ARKitScenes, beginning with a Stage 1 run.

    python -m jaxvlm.train --config configs/stage2_arkit.py

The action's JSON is learnt as text, in metres in the first camera's frame. `runs/stage1` must be
there (its best update is taken), and records as docs/data.md makes them.
"""

from jaxvlm.config import default


def get_config(argument: str = ""):
    """The original's documented Stage 2; `argument` is not used by this file."""
    if argument:
        raise ValueError(f"configs/stage2_arkit.py takes no argument, found {argument!r}")
    config = default()
    config.init_from = "runs/stage1"

    data = config.data
    for split in ("train", "test"):
        path = f"data/processed/arkit/{split}.jsonl"
        data[split] = ({"path": path, "weight": 1.0, "task": "arkit"},)
    data.image_size = 448
    data.num_views = 10
    data.view_dropout = 0.2
    data.held_out = 0.02
    config.text.max_length = 4096
    # An action is some 60 labels.
    data.row_labels = 1536

    optimizer = config.optimizer
    optimizer.learning_rate.language = 2e-5
    optimizer.learning_rate.projector = optimizer.learning_rate.geometry = 2e-4
    optimizer.warmup_ratio = 0.05
    optimizer.weight_decay = 0.05

    # 14 rows of about 18 actions: the original's 4 x 64 samples a GPU and update.
    config.train.rows_per_device = 1
    config.train.accumulation = 14
    # The original's 10,000 micro-batches.
    config.train.max_steps = 156
    config.train.save_every = 50
    config.train.eval_every = 50
    return config
