"""Pretrains the small VGGT on procedural rooms: `python -m jaxvlm.rooms.pretrain`.

Supervision is VGGT's own (arXiv:2503.11651, section 3.3): camera encodings, depth and point maps in
the first view's frame, the latter two weighted by the predicted confidence. The released VGGT
starts from DINOv2, whose tokens know what they show and where they are; the small one starts from
nothing, so a linear probe of each patch token learns beside it which kinds and colours the patch
shows and which point its middle is, and queries learn to find things by name among all views.
Probe, queries and the point head are thrown away.

Axes: B rooms, V views, H W pixels, S patches a view, P tokens a view, K labels, E token width,
N names (kinds, then colours).
"""

import argparse
import dataclasses
import json
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvlm.console import duration, progress
from jaxvlm.errors import UserError
from jaxvlm.models.tree import load, pure
from jaxvlm.models.vggt.config import DPTConfig, VGGTConfig
from jaxvlm.models.vggt.model import VGGT
from jaxvlm.paths import flatten
from jaxvlm.rooms.labels import COLOUR_LABELS, COLOURS, KIND_LABELS, KINDS
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.views import render_views
from jaxvlm.training.weights import save_weights

IMAGE_SIZE = 112
VIEWS = 3
CONFIG = VGGTConfig(
    img_size=IMAGE_SIZE,
    embed_dim=80,
    depth=3,
    num_heads=5,
    init_values=0.5,
    patch_embed="conv",
    heads=("camera", "depth", "point"),
    camera_trunk_depth=1,
    camera_heads=5,
    depth_head=DPTConfig(8, (8, 8, 16, 16), (0, 1, 2, 2)),
    point_head=DPTConfig(8, (8, 8, 16, 16), (0, 1, 2, 2)),
)
# What is shipped; the point map follows from depth and camera.
SHIPPED = ("aggregator", "camera_head", "depth_head")
# Weight of log-confidence in the dense losses.
ALPHA = 0.2
# The dense heads are the slow part; they see one view of every so many rooms.
DENSE_EVERY = 16
# Weights of the terms of the loss.
WEIGHTS = {
    "camera": 5.0,
    "depth": 0.3,
    "points": 0.3,
    "kinds": 10.0,
    "colours": 5.0,
    "where": 8.0,
    "presence": 5.0,
    "names": 3.0,
}
# Fewer pixels in all views together are not held against a name.
LEAST_PIXELS = 12


class Finder(nnx.Module):
    """One query a name, which attends to the tokens of all views and tells what it found.

    Tokens that answer it keep the kind and the colour of a thing together, and apart from those of
    other things, which is what the projector's latents will look for.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        width, names = 2 * CONFIG.embed_dim, len(KINDS) + len(COLOURS)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (names, width)))
        self.read = nnx.Linear(width, 1 + names, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B T E"]
    ) -> tuple[Float[Array, "B N"], Float[Array, "B N N"]]:
        """Logits that each name is there, and of the other names the thing goes by."""
        scores = jnp.einsum("ne,bte->bnt", self.queries[...], tokens) * tokens.shape[-1] ** -0.5
        found = jnp.einsum("bnt,bte->bne", jax.nn.softmax(scores, axis=-1), tokens)
        logits = self.read(found)
        return logits[..., 0], logits[..., 1:]


class Student(nnx.Module):
    """The small VGGT with a linear probe for kinds, colours and points, and a finder of names."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.vggt = VGGT(CONFIG, rngs=rngs)
        labels = len(KIND_LABELS) + len(COLOUR_LABELS)
        self.probe = nnx.Linear(2 * CONFIG.embed_dim, labels + 3, rngs=rngs)
        self.finder = Finder(rngs=rngs)

    def probed(self, patches: Float[Array, "*A E"]) -> tuple[Array, Array, Array]:
        """Logits of kinds and of colours, and points in the first camera's frame, of patches."""
        ends = len(KIND_LABELS), len(KIND_LABELS) + len(COLOUR_LABELS)
        kinds, colours, points = jnp.split(self.probe(patches), ends, axis=-1)
        return kinds, colours, points


def render_rooms(seed: int, first: int, count: int, workers: int) -> dict[str, np.ndarray]:
    """Supervision of rooms `first` to `first + count - 1`, made by worker processes.

    Returns:
      The arrays of `targets` with a leading axis `count`.
    """
    chosen = [(seed, first + number) for number in range(count)]
    filled: dict[str, np.ndarray] = {}
    # Forking a process that runs jax threads can hang.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool, progress("rendering", count) as advance:
        for number, room in enumerate(pool.imap(_room_targets, chosen, chunksize=16)):
            for name, value in room.items():
                if name not in filled:
                    filled[name] = np.empty((count, *value.shape), value.dtype)
                filled[name][number] = value
            advance()
    return filled


def _room_targets(seed_and_index: tuple[int, int]) -> dict[str, np.ndarray]:
    seed, index = seed_and_index
    return targets(render_views(generate_room(seed, "pretrain", index), VIEWS, IMAGE_SIZE))


def targets(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Supervision of one room.

    Args:
      views: what `render_views` returns.

    Returns:
      `images uint8[V,H,W,3]`; `depth f16[V,H,W]` in metres; `cameras f32[V,9]`; `to_first
      f32[V,4,4]` and `k f32[V,3,3]`, camera to first camera and pixel intrinsics; `kinds`,
      `colours f16[V,S,K]`, the fraction of each patch's pixels that shows a label; `pixels
      f32[kinds,colours]`, how many pixels of all views show a kind in a colour.
    """
    height, width = views["depth"].shape[1:]
    to_first = np.linalg.inv(views["cam_to_world"][0]) @ views["cam_to_world"]
    return {
        "images": views["rgb"],
        "depth": views["depth"].astype(np.float16),
        "cameras": camera_encodings(to_first, views["K"], height, width),
        "to_first": to_first.astype(np.float32),
        "k": views["K"].astype(np.float32),
        "kinds": _fractions(views["kind_map"], len(KIND_LABELS)),
        "colours": _fractions(views["colour_map"], len(COLOUR_LABELS)),
        "pixels": _pixels(views["kind_map"], views["colour_map"]),
    }


def camera_encodings(
    to_first: Float[np.ndarray, "V 4 4"], k: Float[np.ndarray, "V 3 3"], height: int, width: int
) -> Float[np.ndarray, "V 9"]:
    """VGGT's encoding of cameras: translation, quaternion (x y z w), fields of view (v, h).

    Args:
      to_first: camera to first camera.
      k: intrinsics in pixels.
      height: of the images in pixels.
      width: of the images in pixels.
    """
    extrinsics = np.linalg.inv(to_first)
    fields = 2 * np.arctan(np.stack([height / (2 * k[:, 1, 1]), width / (2 * k[:, 0, 0])], axis=1))
    quaternions = np.stack([quaternion(r) for r in extrinsics[:, :3, :3]])
    return np.concatenate([extrinsics[:, :3, 3], quaternions, fields], 1).astype(np.float32)


def quaternion(r: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """The unit quaternion (x y z w, w >= 0) of a rotation.

    It is the main eigenvector of a symmetric matrix made of the entries (Bar-Itzhack, 2000).
    """
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
        ]
    )
    q = np.linalg.eigh(k)[1][:, -1]
    return q if q[3] >= 0 else -q


def _fractions(labels: Int[np.ndarray, "V H W"], count: int) -> Float[np.ndarray, "V S K"]:
    """How much of each patch shows each label."""
    views, height, width = labels.shape
    side = CONFIG.patch_size
    blocks = labels.reshape(views, height // side, side, width // side, side)
    blocks = blocks.transpose(0, 1, 3, 2, 4).reshape(views, -1, side * side)
    counts = np.stack([(blocks == label).mean(-1) for label in range(count)], -1)
    return counts.astype(np.float16)


def _pixels(
    kinds: Int[np.ndarray, "V H W"], colours: Int[np.ndarray, "V H W"]
) -> Float[np.ndarray, "kinds colours"]:
    """Pixels of every kind in every colour; doors, walls and the like left out."""
    counts = np.zeros((len(KIND_LABELS), len(COLOUR_LABELS)), np.float32)
    np.add.at(counts, (kinds, colours), 1)
    return counts[len(KIND_LABELS) - len(KINDS) :, len(COLOUR_LABELS) - len(COLOURS) :]


def points_seen(
    depth: Float[Array, "B H W"], k: Float[Array, "B 3 3"], to_first: Float[Array, "B 4 4"]
) -> Float[Array, "B H W 3"]:
    """The points in the first camera's frame, in metres, that the pixels' centres show."""
    height, width = depth.shape[1:]
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    pixels = jnp.stack([x, y, jnp.ones_like(x)], -1)
    rays = jnp.einsum("bij,hwj->bhwi", jnp.linalg.inv(k), pixels)
    points = jnp.einsum("bij,bhwj->bhwi", to_first[:, :3, :3], rays * depth[..., None])
    return points + to_first[:, None, None, :3, 3]


def loss(student: Student, batch: dict[str, Array], dense_view: Array):
    """The weighted loss and its terms.

    Args:
      student: the model.
      batch: arrays of `targets` with a leading axis B.
      dense_view: int32[]; the dense heads, the slow part, predict this view of every
        `DENSE_EVERY`th room.
    """
    vggt = student.vggt
    images = batch["images"].astype(jnp.float32) / 255
    tokens = vggt.aggregator(images, layers=tuple(range(CONFIG.depth)), remat=True)
    poses = vggt.camera_head(tokens[-1])

    def chosen(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x[::DENSE_EVERY], dense_view, 1, axis=1)

    shown = [chosen(tokens[i]) for i in CONFIG.depth_head.layers]
    depth, depth_confidence = vggt.depth_head(shown, images.shape[2:4])
    points, points_confidence = vggt.point_head(shown, images.shape[2:4])
    true_depth = chosen(batch["depth"])[:, 0].astype(jnp.float32)
    true_points = points_seen(true_depth, chosen(batch["k"])[:, 0], chosen(batch["to_first"])[:, 0])
    seen = true_depth > 0
    patches = tokens[-1][:, :, CONFIG.special_tokens :]
    kinds, colours, where = student.probed(patches)
    there, others = student.finder(patches.reshape(len(patches), -1, patches.shape[-1]))
    presence, names = finding_losses(there, others, batch["pixels"])
    distance = jnp.linalg.norm(points[:, 0] - true_points + 1e-6, axis=-1)
    terms = {
        "camera": camera_loss(poses, batch["cameras"]),
        "depth": confident_loss(depth[:, 0, ..., 0] - true_depth, depth_confidence[:, 0], seen),
        "points": confident_loss(distance, points_confidence[:, 0], seen),
        "kinds": optax.softmax_cross_entropy(kinds, batch["kinds"]).mean(),
        "colours": optax.softmax_cross_entropy(colours, batch["colours"]).mean(),
        "where": (optax.huber_loss(where - patch_points(batch), delta=0.3) / 0.3).mean(),
        "presence": presence,
        "names": names,
    }
    return sum(WEIGHTS[name] * value for name, value in terms.items()), terms


def patch_points(batch: dict[str, Array]) -> Float[Array, "B V S 3"]:
    """The middle of the points that each patch shows, in the first camera's frame, in metres."""
    depth = batch["depth"].astype(jnp.float32)
    rooms, views, height, width = depth.shape
    flat = (x.reshape(-1, *x.shape[2:]) for x in (depth, batch["k"], batch["to_first"]))
    side = CONFIG.patch_size
    blocks = points_seen(*flat).reshape(rooms, views, height // side, side, width // side, side, 3)
    return blocks.mean((3, 5)).reshape(rooms, views, -1, 3)


def finding_losses(
    there: Float[Array, "B N"],
    others: Float[Array, "B N N"],
    pixels: Float[Array, "B kinds colours"],
) -> tuple[Array, Array]:
    """Losses of a `Finder`'s logits: is a name there, and what else is the thing called?

    A kind is asked for its colours and a colour for its kinds, in proportion to their pixels; names
    that are not there are asked nothing.
    """
    split = len(KINDS)
    seen = jnp.concatenate([pixels.sum(2), pixels.sum(1)], axis=1)
    present = (seen >= LEAST_PIXELS).astype(jnp.float32)
    presence = optax.sigmoid_binary_cross_entropy(there, present).mean()
    colours = optax.softmax_cross_entropy(others[:, :split, split:], _shares(pixels))
    kinds = optax.softmax_cross_entropy(others[:, split:, :split], _shares(pixels.swapaxes(1, 2)))
    each = jnp.concatenate([colours, kinds], axis=1)
    return presence, (each * present).sum() / jnp.maximum(present.sum(), 1)


def _shares(pixels: Float[Array, "B N M"]) -> Float[Array, "B N M"]:
    return pixels / jnp.maximum(pixels.sum(-1, keepdims=True), 1)


def camera_loss(poses: Float[Array, "I B V 9"], wanted: Float[Array, "B V 9"]) -> Array:
    """Huber loss of every refinement; later ones count more (factor 0.6, as in VGGT)."""
    decay = 0.6 ** jnp.arange(poses.shape[0] - 1, -1, -1)
    each = optax.huber_loss(poses, wanted[None], delta=0.5).mean((1, 2, 3))
    return (decay * each).sum() / decay.sum()


def confident_loss(error: Array, confidence: Array, seen: Array) -> Array:
    """|error| weighted by the confidence, which itself is rewarded (VGGT, equation 3)."""
    value = confidence * jnp.abs(error) - ALPHA * jnp.log(confidence)
    return jnp.where(seen, value, 0).sum() / jnp.maximum(seen.sum(), 1)


class State(NamedTuple):
    """Parameters, their exponential average, and the optimiser's state."""

    params: dict
    average: dict
    optimizer: optax.OptState


def pretrain(flags: argparse.Namespace) -> None:
    """Trains as the flags say and writes the weights folder."""
    for name in ("steps", "batch", "rooms", "workers"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    if (flags.output / "params").exists():
        raise UserError(f"--output {flags.output} already holds weights; choose another folder")
    abstract = nnx.eval_shape(lambda: Student(rngs=nnx.Rngs(0)))
    params = jax.jit(lambda: pure(Student(rngs=nnx.Rngs(flags.seed))))()
    rate = optax.warmup_cosine_decay_schedule(
        0, flags.learning_rate, min(200, flags.steps // 10), flags.steps, 0
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01)
    )

    @jax.jit
    def step(state: State, batch: dict[str, Array], index: Array):
        def value(params):
            return loss(load(abstract, params), batch, index % VIEWS)

        (total, terms), gradients = jax.value_and_grad(value, has_aux=True)(state.params)
        updates, new = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short average at first, a long one later.
        keep = jnp.minimum(0.998, (1 + index) / (10 + index))
        average = optax.incremental_update(params, state.average, 1 - keep)
        return State(params, average, new), {"loss": total, **terms}

    state = State(params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    flags.output.mkdir(parents=True, exist_ok=True)
    state = _run(flags, state, step)
    vggt = flatten(state.average["vggt"])
    shipped = {
        f"vision/{path}": value.astype(jnp.bfloat16)
        for path, value in vggt.items()
        if path.split("/")[0] in SHIPPED
    }
    meta = {
        "source": "python -m jaxvlm.rooms.pretrain",
        "flags": {k: v for k, v in vars(flags).items() if k not in ("output", "overrides")},
        "model": {
            "vision": dataclasses.asdict(dataclasses.replace(CONFIG, heads=("camera", "depth")))
        },
    }
    save_weights(flags.output, shipped, meta)
    held_out = evaluate(abstract, state.average, flags)
    (flags.output / "held_out.json").write_text(json.dumps(held_out, indent=2) + "\n")
    print("held out:", json.dumps(held_out))
    print(f"wrote {flags.output}")


def _run(flags: argparse.Namespace, state: State, step) -> State:
    """All updates, in a new order each time through the rooms; the curve goes to a file."""
    rooms = render_rooms(flags.seed, 0, flags.rooms, flags.workers)
    rng = np.random.default_rng(flags.seed)
    order = np.concatenate(
        [rng.permutation(flags.rooms) for _ in range(-(-flags.steps * flags.batch // flags.rooms))]
    )
    start = time.perf_counter()
    curve = (flags.output / "curve.jsonl").open("w", encoding="utf-8")
    with curve, progress("pretraining", flags.steps) as advance:
        for index in range(flags.steps):
            chosen = order[index * flags.batch : (index + 1) * flags.batch]
            batch = {name: value[chosen] for name, value in rooms.items()}
            state, terms = step(state, batch, jnp.int32(index))
            advance()
            if (index + 1) % 50 == 0 or index + 1 == flags.steps:
                values = {name: round(float(value), 4) for name, value in terms.items()}
                curve.write(json.dumps({"step": index + 1, **values}) + "\n")
                curve.flush()
                spent = time.perf_counter() - start
                left = spent / (index + 1) * (flags.steps - index - 1)
                print(f"Step {index + 1}/{flags.steps} {values} ETA {duration(left)}", flush=True)
    return state


def evaluate(abstract: Student, params: dict, flags: argparse.Namespace) -> dict[str, float]:
    """Errors on 128 rooms that were not trained on, all views."""
    batch = render_rooms(flags.seed, flags.rooms, 128, flags.workers)

    @jax.jit
    def measure(params, batch):
        student = load(abstract, params)
        out = student.vggt(batch["images"].astype(jnp.float32) / 255)
        patches = out["tokens"][:, :, CONFIG.special_tokens :]
        kinds, colours, where = student.probed(patches)
        off = jnp.linalg.norm(where - patch_points(batch), axis=-1)
        _, others = student.finder(patches.reshape(len(patches), -1, patches.shape[-1]))
        pixels, split = batch["pixels"], len(KINDS)
        kind_seen, colour_seen = (pixels.sum(axis) >= LEAST_PIXELS for axis in (2, 1))
        named_colour = others[:, :split, split:].argmax(-1) == pixels.argmax(2)
        named_kind = others[:, split:, :split].argmax(-1) == pixels.argmax(1)
        seen = batch["depth"] > 0
        error = jnp.where(seen, jnp.abs(out["depth"][..., 0] - batch["depth"]), 0)
        shift = jnp.linalg.norm(out["poses"][-1][..., :3] - batch["cameras"][..., :3], axis=-1)
        # Patches that mostly show one object.
        objects = batch["kinds"][..., 6:].max(-1) > 0.5
        right = kinds.argmax(-1) == batch["kinds"].argmax(-1)
        hue = colours.argmax(-1) == batch["colours"].argmax(-1)
        return {
            "depth_error_m": error.sum() / seen.sum(),
            "camera_error_m": shift[:, 1:].mean(),
            "point_error_first_view_m": off[:, 0].mean(),
            "point_error_other_views_m": off[:, 1:].mean(),
            "patch_kind_accuracy": (right * objects).sum() / objects.sum(),
            "patch_colour_accuracy": (hue * objects).sum() / objects.sum(),
            "colour_of_kind_accuracy": (named_colour * kind_seen).sum() / kind_seen.sum(),
            "kind_of_colour_accuracy": (named_kind * colour_seen).sum() / colour_seen.sum(),
        }

    return {name: round(float(v), 4) for name, v in measure(params, batch).items()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.rooms.pretrain", description=__doc__)
    flags.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    flags.add_argument("--steps", type=int, default=6500)
    flags.add_argument("--batch", type=int, default=8, help="rooms a step")
    flags.add_argument("--learning_rate", type=float, default=1.5e-3)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--rooms", type=int, default=8000, help="different rooms")
    flags.add_argument("--workers", type=int, default=2, help="processes that render")
    return flags
