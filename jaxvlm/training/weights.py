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
    except (FileNotFoundError, NotADirectoryError):
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
            metadata = reader.metadata(folder).item_metadata
        except (FileNotFoundError, ValueError):
            metadata = None
        if metadata is None:
            raise UserError(f"the weights at {name!r} are incomplete: {folder} cannot be read")
        stored = flatten(metadata.tree)
        check_fits(f"the weights at {name!r} hold", stored, wanted)
        tree = unflatten(wanted)
        arguments = ocp.checkpoint_utils.construct_restore_args(tree)
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True),
        )
    return flatten(restored)


def check_fits(holder: str, stored: Mapping, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises a UserError, which begins with `holder`, for a path or shape that is not as wanted."""
    for path, leaf in wanted.items():
        if path not in stored:
            raise UserError(f"{holder} no parameter {path!r}")
        if tuple(stored[path].shape) != tuple(leaf.shape):
            raise UserError(
                f"{holder} {path!r} with shape {list(stored[path].shape)}, the configuration asks "
                f"for {list(leaf.shape)}"
            )
