"""The demo: a small model learns to answer questions about procedural rooms, on two CPU cores.

python -m jaxvlm.rooms --output runs/demo/rooms
python -m jaxvlm.train --config configs/demo.py --workdir runs/demo
python -m jaxvlm.evaluate --checkpoint runs/demo --split test
"""

from jaxvlm.config import default


def get_config(argument: str = ""):
    """The same system as Stage 1 with small sizes; `argument` is not used by this file."""
    if argument:
        raise ValueError(f"configs/demo.py takes no argument, found {argument!r}")
    config = default()
    config.precision = "float32"

    vision = config.model.vision
    vision.weights = "jaxvlm:rooms"
    vision.img_size = 112
    vision.patch_embed = "conv"
    vision.embed_dim = 80
    vision.depth = 3
    vision.num_heads = 5
    projector = config.model.projector
    projector.latent_dim = 96
    projector.num_latents = 16
    # Fewer heads with more numbers each turn from guessing to looking sooner.
    projector.num_heads = 2
    projector.num_layers = 1
    projector.ffn_dim = 384
    language = config.model.language
    language.weights = None
    language.vocab_size = 672
    language.hidden_size = 96
    language.num_layers = 3
    language.num_heads = 4
    language.num_kv_heads = 2
    language.head_dim = 24
    language.intermediate_size = 256
    language.rope_theta = 10_000.0

    config.text.tokenizer = "jaxvlm:rooms"
    config.text.max_length = 128

    data = config.data
    for split in ("train", "val", "test"):
        data[split] = ({"path": f"runs/demo/rooms/{split}.jsonl", "weight": 1.0},)
    data.image_size = 112
    data.num_views = 3
    data.view_dropout = 0.0
    data.row_length = 208
    data.row_sets = 1
    data.row_labels = 40
    data.questions_per_set = 6
    data.num_workers = 0

    # Seven points of exact match more than AdamW, after fewer updates at as many a second.
    config.optimizer.kernels = "muon"
    for part in ("language", "projector", "geometry"):
        config.optimizer.learning_rate[part] = 1.5e-3
    # A longer memory of squared gradients delays the turn too, and so does clipping every gradient.
    config.optimizer.b2 = 0.95
    config.optimizer.gradient_clip = 10.0
    config.train.max_steps = 3400
    config.train.rows_per_device = 8
    config.train.accumulation = 1
    # On a CPU it is faster to compute again than to store and fetch.
    config.train.remat = "full"
    config.train.log_every = 100
    config.train.save_every = 500

    config.evaluation.max_new_tokens = 8
    config.evaluation.batch_sets = 16
    config.evaluation.batch_questions = 192
    return config
