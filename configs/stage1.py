"""Stage 1: answers to questions about rooms, from ScanQA and SQA3D, with the full-size model.

    python -m jaxvlm.train --config configs/stage1.py

VGGT is frozen; the projector, the geometry head and all of Qwen3-4B learn.
"""

from jaxvlm.config import default


def get_config(argument: str = ""):
    """The defaults are Stage 1's; only the data is named here."""
    if argument:
        raise ValueError(f"configs/stage1.py takes no argument, found {argument!r}")
    config = default()
    weights = {"scanqa": 0.7, "sqa3d": 0.3}
    for split, file in (("train", "train_split"), ("test", "test_split")):
        config.data[split] = tuple(
            {"path": f"data/processed/{name}/{file}.jsonl", "weight": weight, "task": name}
            for name, weight in weights.items()
        )
    return config
