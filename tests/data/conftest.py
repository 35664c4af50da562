"""A small data set with known colours, and the optional real data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvlm.data.tokenizer import Tokenizer, load_tokenizer

SIDE = 14
VIEWS = 3


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples and tokenizers, where there is one."""
    folder = os.environ.get("JAXVLM_SHARED")
    if not folder:
        pytest.skip("JAXVLM_SHARED is not set: no real data here")
    return Path(folder)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer("jaxvlm:rooms")


def colour(scene: int, view: int) -> tuple[int, int, int]:
    return 20 + 30 * scene, 40 + 60 * view, 128


@pytest.fixture(scope="session")
def scenes_file(tmp_path_factory) -> Path:
    """Six scenes of one to three views with one to four questions; even scenes have geometry."""
    folder = tmp_path_factory.mktemp("scenes")
    lines = []
    for scene in range(6):
        views = 1 + scene % VIEWS
        images = [f"scene{scene}_{view}.png" for view in range(views)]
        for view, name in enumerate(images):
            Image.new("RGB", (SIDE, SIDE), colour(scene, view)).save(folder / name)
        geometry = {
            "R": np.tile(np.eye(3).ravel(), (views, 1)).tolist(),
            "t": [[scene, view, 1] for view in range(views)],
            "K": [[10, 0, 7, 0, 10, 7, 0, 0, 1]] * views,
            "depth_hist": [[1] + [0] * 15] * views,
        }
        for question in range(1 + scene % 4):
            record = {
                "images": images,
                "geom_token": geometry if scene % 2 == 0 else None,
                "image_size": [SIDE, SIDE],
                "scene_id": f"scene{scene}",
                "question": f"What color is chair number {question} of room {scene}?",
                "answer": " and ".join(["red"] * (1 + question)),
            }
            if question % 2:
                record["situation"] = f"I am standing at door {scene}."
            lines.append(record)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
