"""From a configuration to parameters on the devices; training and answering start here."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.models.adapted import layers_of, plain_path
from jaxvlm.models.lora import is_adapter
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vlm import VLMConfig
from jaxvlm.training.mesh import shardings
from jaxvlm.training.parameters import FROZEN, Group, trainable
from jaxvlm.training.state import Params, abstract_parameters, initial_parameters
from jaxvlm.training.weights import check_model, load_weights, read_meta

_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
# The parts of the model; the weights of each can be imported.
_PARTS = ("vision", "projector", "geometry", "language")


def compute_dtype(config) -> jnp.dtype:
    """The dtype of the computation."""
    return _DTYPES[config.precision]


def frozen_identity(config, groups: dict[str, Group]) -> dict[str, str]:
    """What the frozen weights of each part of the model are: the same again, or others.

    Weights are known by their content, random ones by the seed.
    """
    frozen = {path.split("/")[0] for path, group in groups.items() if group.name == FROZEN}
    names = {part: config.model[part].weights for part in _PARTS}
    return {
        part: read_meta(names[part])["content"] if names.get(part) else f"random, {config.seed}"
        for part in sorted(frozen)
    }


def vision_identity(config, groups: dict[str, Group]) -> str:
    """What VGGT's weights are, whose features are to be cached.

    Raises:
      UserError: some of them learn, so that features would not stay true.
    """
    learning = [p for p, g in groups.items() if p.startswith("vision/") and g.name != FROZEN]
    if learning:
        raise UserError(
            f"'parameters' lets {learning[0]!r} learn, but data.features.folder="
            f"{config.data.features.folder!r} holds what VGGT made of the images before; freeze "
            "'vision/.*', or set data.features.folder=None"
        )
    return frozen_identity(config, groups)["vision"]


def all_parameters(
    config, model: VLMConfig, groups: dict[str, Group], mesh: Mesh, skip: frozenset = frozenset()
) -> Params:
    """Every parameter on its devices: imported where the configuration names weights, else random.

    Args:
      config: the configuration.
      model: sizes.
      groups: frozen leaves are held in the compute dtype, the others in float32.
      mesh: devices.
      skip: paths that come from elsewhere (a checkpoint) and are left out.

    Raises:
      UserError: weights that do not exist or do not fit.
    """
    dtype = compute_dtype(config)
    shapes = {p: s for p, s in abstract_parameters(model).items() if p not in skip}
    needed = load_tokenizer(config.text.tokenizer).rows
    if model.language.vocab_size < needed:
        raise UserError(
            f"model.language.vocab_size={model.language.vocab_size} is too small for the "
            f"tokenizer {config.text.tokenizer!r}, which needs {needed} rows"
        )
    imported: Params = {}
    for part in _PARTS:
        name = config.model[part].weights
        # Adapters begin anew.
        wanted = {
            path: shape
            for path, shape in shapes.items()
            if path.startswith(f"{part}/") and not is_adapter(path)
        }
        if name is None or not wanted:
            continue
        check_model(name, part, {k: v for k, v in config.model[part].items() if k != "weights"})
        placed = shardings(wanted, mesh, trainable(groups))
        like = {
            path: jax.ShapeDtypeStruct(
                shape.shape,
                dtype if groups[path].name == FROZEN else jnp.float32,
                sharding=placed[path],
            )
            for path, shape in wanted.items()
        }
        imported |= _load(name, like, model.language)
    rest = set(shapes) - set(imported)
    fresh = initial_parameters(model, groups, rest, dtype, config.seed, mesh) if rest else {}
    return {path: imported.get(path, fresh.get(path)) for path in shapes}


def _load(name: str, like: dict[str, jax.ShapeDtypeStruct], language: Qwen3Config) -> Params:
    """The weights of the paths of `like`; stacks of which a run has the first layers apart, cut."""
    layers = {path: layers_of(path, language) for path in like}
    wanted = {}
    for path, leaf in like.items():
        if layers[path] is not None:
            # The later layers' leaf, which comes last, says in which dtype the whole is read.
            shape = (language.num_layers, *leaf.shape[1:])
            leaf = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)
        wanted[plain_path(path)] = leaf
    loaded = load_weights(name, wanted)
    return {
        path: loaded[path]
        if layers[path] is None
        else loaded[plain_path(path)][layers[path]].astype(leaf.dtype, device=leaf.sharding)
        for path, leaf in like.items()
    }
