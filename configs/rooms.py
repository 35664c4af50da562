"""The longer run on procedural rooms: the demo's model, more rooms and more updates.

    python -m jaxvlm.rooms --output data/processed/rooms --train-rooms 8000
    python -m jaxvlm.train --config configs/rooms.py
    python -m jaxvlm.train --config configs/rooms.py:text_only

`text_only` shows black images and no geometry: what can be known without looking.
"""

import importlib.util
from pathlib import Path


def _demo():
    """The demo's file stands beside this one; configs/ is no package."""
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).with_name("demo.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def get_config(argument: str = ""):
    """`argument` is empty or `text_only`."""
    if argument not in ("", "text_only"):
        raise ValueError(f"configs/rooms.py knows the argument text_only, found {argument!r}")
    config = _demo()
    for split in ("train", "val", "test"):
        config.data[split] = ({"path": f"data/processed/rooms/{split}.jsonl", "weight": 1.0},)
    config.data.blind = argument == "text_only"
    config.train.max_steps = 20_000
    config.train.log_every = 200
    config.train.save_every = 2000
    config.train.eval_every = 2000
    return config
