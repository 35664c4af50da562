"""From a configuration to parameters on the devices; training and answering start here."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.models.adapted import layers_of, plain_path
from jaxvlm.models.lora import is_adapter
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vlm import PARTS, VLMConfig
from jaxvlm.training.loss import LossWeights
from jaxvlm.training.optimizer import Optimizer
from jaxvlm.training.parameters import Group
from jaxvlm.training.state import Params, TrainState, initial_parameters, placed_parameters
from jaxvlm.training.step import Steps, make_steps
from jaxvlm.training.weights import check_model, load_weights

_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def compute_dtype(config) -> jnp.dtype:
    """The dtype of the computation."""
    return _DTYPES[config.precision]


def loss_weights(config) -> LossWeights:
    """What each loss counts."""
    loss = config.loss
    return LossWeights(loss.language, loss.action_json, loss.geometry_consistency)


def run_steps(
    config, model: VLMConfig, optimizer: Optimizer, state: TrainState, sources: int
) -> Steps:
    """The compiled steps of a configuration's run, over data of so many sources."""
    dtype, weights = compute_dtype(config), loss_weights(config)
    return make_steps(model, optimizer, dtype, config.train.remat, state, sources, weights)


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
    likes = placed_parameters(model, groups, dtype, mesh)
    likes = {path: like for path, like in likes.items() if path not in skip}
    needed = load_tokenizer(config.text.tokenizer).rows
    if model.language.vocab_size < needed:
        raise UserError(
            f"model.language.vocab_size={model.language.vocab_size} is too small for the "
            f"tokenizer {config.text.tokenizer!r}, which needs {needed} rows"
        )
    imported: Params = {}
    for part in PARTS:
        name = config.model[part].weights
        # Adapters begin anew.
        wanted = {
            path: like
            for path, like in likes.items()
            if path.startswith(f"{part}/") and not is_adapter(path)
        }
        if name is None or not wanted:
            continue
        check_model(name, part, {k: v for k, v in config.model[part].items() if k != "weights"})
        imported |= _load(name, wanted, model.language)
    rest = set(likes) - set(imported)
    fresh = initial_parameters(model, groups, rest, dtype, config.seed, mesh) if rest else {}
    return {path: imported.get(path, fresh.get(path)) for path in likes}


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
    loaded, params = load_weights(name, wanted), {}
    # One stack after the other, so that none is held twice for long.
    for path in sorted(like, key=lambda path: (plain_path(path), path)):
        if layers[path] is None:
            params[path] = loaded.pop(path)
            continue
        part = loaded[plain_path(path)][layers[path]]
        params[path] = part.astype(like[path].dtype, device=like[path].sharding)
        if path == plain_path(path):
            del loaded[path]
    return params
