"""A whole experiment of toy size: a configuration file, and the records and images it reads.

The tests pass this file itself as `--config`; the record file comes by `--config.data.train`.
"""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 56
VIEWS = 2
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 60, 220),
    "yellow": (230, 220, 40),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
}


def get_config(argument: str = ""):
    """`configs/demo.py` with the smallest sizes that still have every part."""
    del argument
    path = Path(__file__).parent.parent / "configs" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()

    vision = config.model.vision
    vision.weights = None
    vision.img_size = SIDE
    vision.embed_dim = 16
    vision.depth = 1
    vision.num_heads = 2
    projector = config.model.projector
    projector.latent_dim = 16
    projector.num_latents = 4
    projector.num_heads = 2
    projector.num_layers = 1
    projector.ffn_dim = 32
    language = config.model.language
    language.hidden_size = 32
    language.num_layers = 2
    language.num_heads = 2
    language.num_kv_heads = 1
    language.head_dim = 16
    language.intermediate_size = 48
    config.text.max_length = 48

    data = config.data
    data.train = data.val = data.test = ()
    data.image_size = SIDE
    data.num_views = VIEWS
    data.row_length = 96
    data.row_sets = 2
    data.row_labels = 12
    data.questions_per_set = 2
    # Muon makes rounding in directions without a gradient as large as all else: no layouts could be
    # compared number by number.
    config.optimizer.kernels = "adamw"
    for part in ("language", "projector", "geometry"):
        config.optimizer.learning_rate[part] = 3e-3
    config.train.max_steps = 6
    config.train.rows_per_device = 2
    config.train.log_every = 1
    config.train.save_every = 2
    config.evaluation.max_new_tokens = 6
    config.evaluation.batch_sets = 3
    config.evaluation.batch_questions = 4
    return config


def picture(colour: str, view: int) -> Image.Image:
    """A wall with a floor and a dark square that stands elsewhere in every view."""
    pixels = np.full((SIDE, SIDE, 3), COLOURS[colour], np.uint8)
    pixels[40:] = (120, 90, 60)
    left = 8 + 20 * view
    pixels[24:44, left : left + 12] = (60, 60, 70)
    return Image.fromarray(pixels)


def geometry(scene: int) -> dict:
    """Poses, intrinsics and depth histograms of the two views of a scene."""
    angles = [0.3 * scene, 0.3 * scene + 1.0]
    rotations = [
        [np.sin(a), 0.0, np.cos(a), -np.cos(a), 0.0, np.sin(a), 0.0, -1.0, 0.0] for a in angles
    ]
    histograms = np.random.default_rng(scene).dirichlet(np.ones(16), VIEWS)
    return {
        "R": rotations,
        "t": [[0.5 * scene, 1.0, 1.5], [1.0, 0.2 * scene, 1.4]],
        "K": [[50.0, 0.0, 28.0, 0.0, 50.0, 28.0, 0.0, 0.0, 1.0]] * VIEWS,
        "depth_hist": histograms.tolist(),
    }


def write_records(folder: Path) -> Path:
    """Twelve images and `records.jsonl`: two questions about each of six scenes.

    Every other scene has geometry, the last has one view only.
    """
    lines = []
    for scene, colour in enumerate(COLOURS):
        images = []
        for view in range(VIEWS):
            images.append(f"scene{scene}_{view}.png")
            picture(colour, view).save(folder / images[-1])
        token = geometry(scene)
        if scene == len(COLOURS) - 1:
            images = images[:1]
        common = {
            "images": images,
            "geom_token": token if scene % 2 == 0 else None,
            "image_size": [SIDE, SIDE],
            "scene_id": f"scene{scene}",
            "task": "tiny",
        }
        lines += [
            {
                **common,
                "kind": "colour",
                "question": "What color is the wall?",
                "answer": colour,
                "question_id": f"colour-{scene}",
            },
            {
                **common,
                "kind": "existence",
                "question": "Is there a chair on the left of the big table?",
                "situation": "I am standing at the door." if scene < 3 else "",
                "answer": "yes" if scene % 2 else "no",
                "question_id": f"existence-{scene}",
            },
        ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_for(records: Path, **changes):
    """The configuration over a record file; `changes` are written `train__max_steps=3`."""
    overrides = [f"{name.replace('__', '.')}={value!r}" for name, value in changes.items()]
    return _load(str(records), tuple(overrides))


@functools.cache
def _load(records: str, overrides: tuple[str, ...]):
    from jaxvlm.config import load

    splits = [f"data.{split}={records}" for split in ("train", "val", "test")]
    return load(__file__, [*splits, *overrides])


def arguments(records: Path, workdir: Path, *overrides: str) -> list[str]:
    """The command line of `jaxvlm.train` for the record file."""
    flags = ["--config", __file__, "--workdir", str(workdir)]
    splits = [f"--config.data.{split}={records}" for split in ("train", "val", "test")]
    return [*flags, *splits, *(f"--config.{override}" for override in overrides)]


def colour_records(folder: Path) -> Path:
    """`write_records`, and a file with the six colour questions alone."""
    lines = write_records(folder).read_text().splitlines(keepends=True)
    path = folder / "colours.jsonl"
    path.write_text("".join(line for line in lines if '"kind": "colour"' in line))
    return path


# A model that measures actions, and rows that hold them.
ACTIONS = {
    "model__action__ffn_dim": 16,
    "loss__action_json": 1.0,
    "loss__geometry_consistency": 0.5,
    "text__max_length": 192,
    "data__row_length": 384,
    "data__row_labels": 240,
}


def action_records(folder: Path) -> Path:
    """`write_records`, and a file with two instructions about each scene that has geometry."""
    shown = [json.loads(line) for line in write_records(folder).read_text().splitlines()][::2]
    lines = []
    for scene, entry in enumerate(shown):
        if entry["geom_token"] is None:
            continue
        for number, name in enumerate(("chair", "table")):
            action = {
                "action": "place_anchor",
                "scene": entry["scene_id"],
                "center": [0.5 * scene + 0.7 * np.cos(0.3 * scene), 1.0 + number, 1.0],
                "normal": [0.6, 0.8, 0.0] if number else [0.0, 0.0, 1.0],
                "extent": [0.5 + number, 0.4, 0.3],
            }
            lines.append(
                {
                    **{k: v for k, v in entry.items() if k not in ("question", "answer", "kind")},
                    "instruction": f"Place an anchor at the {name}.",
                    "action_json": action,
                    "object_names": [name],
                    "question_id": f"action-{scene}-{number}",
                }
            )
    path = folder / "actions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
