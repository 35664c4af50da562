"""Imported weights: an Orbax folder of a pure parameter dict beside a `meta.json`.

<folder>/meta.json        {"format": 1, "source": …, "model": sizes}
<folder>/params/          Orbax tree, paths as in the model, e.g. aggregator/camera_token
"""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array

from jaxvlm.errors import UserError
from jaxvlm.paths import flatten, unflatten

# Weights shipped in the package, by name.
BUILT_IN = {"jaxvlm:rooms": Path(__file__).parent.parent / "assets" / "rooms_vggt"}
FORMAT = 1


def save_weights(folder: Path, params: Mapping[str, Array], meta: Mapping) -> None:
    """Writes a flat dict of parameters and what is known of it into a new folder."""
    with ocp.PyTreeCheckpointer() as writer:
        writer.save((folder / "params").absolute(), unflatten(params))
    text = json.dumps({"format": FORMAT, **meta}, indent=2)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def read_meta(name: str) -> dict:
    """The `meta.json` of a weights folder.

    Raises:
      UserError: there is no such folder, or it is of another format.
    """
    folder = BUILT_IN.get(name, Path(name))
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no imported weights at {name!r} (expected {folder}/meta.json); set the field to None "
            "for random weights, or to 'jaxvlm:rooms' for the small VGGT in the package"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}/meta.json is damaged: {error.msg}") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{folder}/meta.json has format {meta.get('format')!r}, expected {FORMAT}")
    return meta


def load_weights(name: str, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Restores the parameters in `wanted`, each with its dtype and sharding.

    Tensors of the folder that nobody wants (heads, say) are not read.

    Raises:
      UserError: a parameter that the folder lacks or holds in another shape, by name.
    """
    read_meta(name)
    folder = (BUILT_IN.get(name, Path(name)) / "params").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        try:
            stored = flatten(reader.metadata(folder).item_metadata.tree)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"the weights at {name!r} are incomplete: {error}") from None
        for path, leaf in wanted.items():
            if path not in stored:
                raise UserError(f"the weights at {name!r} hold no parameter {path!r}")
            if tuple(stored[path].shape) != tuple(leaf.shape):
                raise UserError(
                    f"the weights at {name!r} hold {path!r} with shape "
                    f"{list(stored[path].shape)}, the configuration asks for {list(leaf.shape)}"
                )
        tree = unflatten(wanted)
        arguments = ocp.checkpoint_utils.construct_restore_args(tree)
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True),
        )
    return flatten(restored)
