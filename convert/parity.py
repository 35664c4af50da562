"""Our models beside recorded inputs and outputs of PyTorch's, through the same name tables."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import parts, sizes
from convert.source import Entry
from convert.table import match
from jaxvlm.errors import UserError
from jaxvlm.models.geometry import GeometryConfig, GeometryHead
from jaxvlm.models.perceiver import Perceiver
from jaxvlm.models.tree import load
from jaxvlm.models.vggt.config import HEADS
from jaxvlm.models.vggt.model import VGGT
from jaxvlm.models.vggt.vit import interpolate_positions
from jaxvlm.paths import unflatten

WEIGHTS = "params/"
_INPUTS = re.compile(r"/(images|tokens_\d+|pos_embed|aggregated_tokens|geom/\w+)$")
_HEADS = re.compile(rf"{WEIGHTS}(camera|depth|point)_head\.")
# Ours: the name of PyTorch's.
_DENSE = {"depth": "depth", "depth_confidence": "depth_conf", "points": "world_points",
          "points_confidence": "world_points_conf"}  # fmt: skip
# Largest errors in float32: of tokens, poses and depths absolute; of points relative to the
# largest, as an inverse logarithm makes them as large as it likes. Noise is about a tenth of these.
_TOKENS, _POINTS, _PROJECTOR = 5e-5, 1e-5, 1e-5
# Relative to the largest value, in bfloat16.
_BFLOAT16 = 3e-2


@dataclasses.dataclass(frozen=True)
class Compared:
    """An output beside the recorded one.

    Attributes:
      case: of the fixture.
      output: its name there.
      shape: of both.
      error: the largest difference.
      relative: the same, over the largest recorded value.
      tolerance: for `relative` if `by_scale`, else for `error`.
      by_scale: see `tolerance`.
    """

    case: str
    output: str
    shape: tuple[int, ...]
    error: float
    relative: float
    tolerance: float
    by_scale: bool

    @property
    def agrees(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return (self.relative if self.by_scale else self.error) <= self.tolerance


class _Weights(Mapping[str, np.ndarray]):
    """The tensors behind `params/`, each read when it is asked for, in a dtype.

    VGGT's heads keep float32, as in the official code, which leaves them out of autocast.
    """

    def __init__(self, tensors, dtype: np.dtype):
        self._tensors = tensors
        self.half = dtype != np.float32
        self.entries: dict[str, Entry] = {
            key.removeprefix(WEIGHTS): dataclasses.replace(
                entry, dtype=np.dtype(np.float32) if _HEADS.match(key) else dtype
            )
            for key, entry in tensors.entries.items()
            if key.startswith(WEIGHTS)
        }
        self.folder = tensors.folder

    def __getitem__(self, key: str) -> np.ndarray:
        return self._tensors[WEIGHTS + key].astype(self.entries[key].dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def compare(tensors, stated: Mapping, dtype: np.dtype) -> list[Compared]:
    """Runs every case of a fixture.

    Args:
      tensors: weights, inputs and outputs.
      stated: the JSON beside them, with the sizes under `config`.
      dtype: of the weights but VGGT's heads, and of the projector's inputs.

    Raises:
      UserError: weights that do not fit, or of no model of ours; an output of another shape.
    """
    weights = _Weights(tensors, np.dtype(dtype))
    found: list[Compared] = []
    if any(key.startswith("aggregator.") for key in weights):
        found += _vggt(tensors, weights, stated)
    if any(key.startswith(("projector.", "geom_head.")) for key in weights):
        found += _projector(tensors, weights, stated)
    if not found:
        raise UserError(
            "the fixture holds nothing to compare: expected params/aggregator.* and CASE/images, "
            "or params/projector.* and CASE/aggregated_tokens, with outputs"
        )
    return found


def not_compared(tensors, found: list[Compared]) -> list[str]:
    """What a fixture holds beside weights, inputs and the outputs that were compared."""
    done = {f"{one.case}/{one.output}" for one in found}
    return [
        key
        for key in tensors
        if not key.startswith(WEIGHTS) and key not in done and not _INPUTS.search(key)
    ]


def _vggt(tensors, weights: _Weights, stated: Mapping) -> list[Compared]:
    heads = [h for h in HEADS if any(key.startswith(f"{h}_head.") for key in weights)]
    config = sizes.vggt_config(stated.get("config", stated), heads)
    model = _model(VGGT, "vision", config, weights)

    @jax.jit
    def run(model: VGGT, images):
        layers = model.aggregator(images, layers=range(config.depth))
        return model.aggregator.patch_tokens(images), layers, model(images)

    found = []
    for case in _cases(tensors, "images"):
        images = jnp.asarray(tensors[f"{case}/images"]).transpose(0, 1, 3, 4, 2)
        patches, layers, out = run(model, images)
        ours = {"patch_tokens": patches}
        ours |= {f"aggregated_tokens_{i:02}": x for i, x in enumerate(layers)}
        for i, pose in enumerate(out.get("poses", ())):
            ours |= {f"pose_enc_iter_{i:02}": pose, "pose_enc": pose}
        ours |= {theirs: out[name] for name, theirs in _DENSE.items() if name in out}
        found += _compared(tensors, case, ours, weights.half)
    if "headonly/tokens_00" in tensors:
        found += _heads(tensors, weights, model, stated["headonly"]["image_hw"])
    for key in sorted(key for key in tensors if re.fullmatch(r"pos_interp/\d+x\d+", key)):
        height, width = map(int, key.split("/")[1].split("x"))
        learnt = jnp.asarray(tensors["pos_interp/pos_embed"])
        positions = interpolate_positions(learnt, height, width, config.patch_size)
        found += _compared(tensors, "pos_interp", {key.split("/")[1]: positions}, weights.half)
    return found


def _heads(tensors, weights: _Weights, model: VGGT, size: Sequence[int]) -> list[Compared]:
    """The heads alone, on recorded tokens of the layers."""
    layers = sorted(key for key in tensors if key.startswith("headonly/tokens_"))
    tokens = [jnp.asarray(tensors[key]) for key in layers]
    ours = {"pose_enc": jax.jit(_call)(model.camera_head, tokens[-1])[-1]}
    asked = [tokens[layer] for layer in model.config.depth_head.layers]
    dense = jax.jit(lambda head, x: head(x, tuple(size)))(model.depth_head, asked)
    return _compared(
        tensors,
        "headonly",
        ours | dict(zip(("depth", "depth_conf"), dense, strict=True)),
        weights.half,
    )


def _projector(tensors, weights: _Weights, stated: Mapping) -> list[Compared]:
    given, found = stated.get("config", stated), []
    if any(key.startswith("projector.") for key in weights):
        config = sizes.projector_config(weights.entries, given.get("num_heads", 8))
        model = _model(Perceiver, "projector", config, weights)
        for case in _cases(tensors, "aggregated_tokens"):
            context = jnp.asarray(tensors[f"{case}/aggregated_tokens"])
            context = context.astype(model.latents[...].dtype)
            found += _compared(
                tensors, case, {"visual_tokens": jax.jit(_call)(model, context)}, weights.half
            )
    if any(key.startswith("geom_head.") for key in weights):
        config = sizes.geometry_config(weights.entries)
        # The original makes one vector of all views; it repeats it later.
        config = GeometryConfig("pooled", config.in_dim, config.out_dim, num_tokens=1)
        model = _model(GeometryHead, "geometry", config, weights)
        for case in _cases(tensors, "geom/R"):
            names = [f"{case}/geom/{name}" for name in ("R", "t", "K", "depth_hist")]
            numbers = jnp.concatenate([jnp.asarray(tensors[name]) for name in names], axis=-1)
            numbers = numbers.astype(model.in_proj.kernel[...].dtype)
            token = jax.jit(_call)(model, numbers)[:, 0]
            found += _compared(tensors, case, {"geom_token": token}, weights.half)
    return found


def _call(model: nnx.Module, x):
    return model(x)


def _model(kind, part: str, config: parts.Sizes, weights: _Weights):
    """The module with the fixture's weights."""
    table = parts.rules({part: config})
    own = [r"(?!projector\.).*"] if part == "projector" else [r"(?!geom_head\.).*"]
    ignore = [r"track_head\..*", r"projector\..*", r"geom_head\..*"] if part == "vision" else own
    params = {}
    for leaf in match(table, weights.entries, parts.shapes({part: config}), ignore):
        value = np.zeros(leaf.shape, leaf.dtype)
        leaf.fill(weights, value)
        params[leaf.path.removeprefix(f"{part}/")] = jnp.asarray(value)
    abstract = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    return load(abstract, unflatten(params))


def _cases(tensors, given: str) -> Sequence[str]:
    return [key.removesuffix(f"/{given}") for key in tensors if key.endswith(f"/{given}")]


def _compared(tensors, case: str, ours: Mapping, half: bool) -> list[Compared]:
    """Sets what we computed, from weights of bfloat16 if `half`, beside what was recorded."""
    found = []
    for output, value in ours.items():
        key = f"{case}/{output}"
        if key not in tensors:
            continue
        theirs = tensors[key].astype(np.float64)
        if theirs.shape != value.shape:
            raise UserError(
                f"{key!r} has the shape {list(theirs.shape)}, jaxvlm computes {list(value.shape)}"
            )
        error = float(np.abs(theirs - np.asarray(value, np.float64)).max())
        largest = float(np.abs(theirs).max())
        by_scale = output.startswith("world_points") or half
        tolerance = _POINTS if by_scale else _TOKENS
        if output in ("visual_tokens", "geom_token"):
            tolerance = _PROJECTOR
        tolerance = _BFLOAT16 if half else tolerance
        relative = error / largest if largest else error
        found.append(Compared(case, output, theirs.shape, error, relative, tolerance, by_scale))
    return found
