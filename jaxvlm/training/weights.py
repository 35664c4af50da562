"""Imported weights: an Orbax folder of a pure parameter dict beside a `meta.json`.

<folder>/meta.json    {"format": 2, "content": SHA-256 of all tensors, "model": {part: sizes}, …}
<folder>/params/      Orbax tree, paths as in the whole model, e.g. vision/aggregator/camera_token
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from jaxvlm.errors import UserError, first_line
from jaxvlm.files import write_text
from jaxvlm.paths import flatten, unflatten

# Weights shipped in the package, by name.
BUILT_IN = {"jaxvlm:rooms": Path(__file__).parent.parent / "assets" / "rooms_vggt"}
FORMAT = 2


def save_weights(folder: Path, params: Mapping[str, Array], meta: Mapping) -> None:
    """Writes a flat dict of parameters and what is known of it into a new folder.

    `meta["model"]` gives the sizes of every part of the model that the parameters are of.
    """
    with ocp.PyTreeCheckpointer() as writer:
        writer.save((folder / "params").absolute(), unflatten(params))
    described = {"format": FORMAT, "content": fingerprint(params), **meta}
    # Last: where it stands, everything stands.
    write_text(folder / "meta.json", json.dumps(described, indent=2) + "\n")


def fingerprint(params: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes: tells one set of weights from another."""
    digest = hashlib.sha256()
    for path in sorted(params):
        value = np.asarray(params[path])
        digest.update(f"{path}{value.shape}{value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()


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
            f"no imported weights at {name!r} (expected {folder}/meta.json); make them with python "
            "-m convert.import_torch (docs/weights.md), or set the field to None for random "
            "weights, or to 'jaxvlm:rooms' for the small VGGT in the package"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/meta.json is damaged: {error}; import them anew") from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT or "content" not in meta or not isinstance(meta.get("model"), dict):
        raise UserError(
            f"{folder}/meta.json has format {found!r}, expected {FORMAT} with the hash of the "
            "'content' and the sizes of the 'model'; import the weights anew"
        )
    return meta


def exist(name: str) -> bool:
    """Whether there are imported weights of this name, damaged ones too; not procedural rooms."""
    meta = Path(name) / "meta.json"
    if name in BUILT_IN or not meta.is_file():
        return name in BUILT_IN
    try:
        found = json.loads(meta.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(found, dict) or "format" in found


def content(name: str) -> str:
    """The hash that tells these weights from others."""
    return read_meta(name)["content"]


def check_model(name: str, part: str, sizes: Mapping[str, Any]) -> None:
    """Checks that weights hold a part of the model, and of the sizes of a configuration.

    Shapes don't tell all of them: heads and the base of the rotary embedding, for example.

    Args:
      name: of the weights.
      part: of the model, as in the configuration.
      sizes: fields of `model.<part>` of the configuration.

    Raises:
      UserError: no such part, or a field that differs.
    """
    parts = read_meta(name)["model"]
    if part not in parts:
        raise UserError(
            f"model.{part}.weights={name!r} holds {' and '.join(sorted(parts))}, not {part}"
        )
    stored = parts[part]
    for field, value in sizes.items():
        if field in stored and stored[field] != value:
            raise UserError(
                f"the weights at {name!r} were made for {field}={stored[field]!r}, the "
                f"configuration says {value!r}; set model.{part}.{field}={stored[field]!r}"
            )


def load_weights(name: str, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Restores the parameters in `wanted`, each with its dtype and sharding.

    Tensors of the folder that nobody wants (heads, say) are not read.

    Raises:
      UserError: a parameter that the folder lacks or holds in another shape, by name.
    """
    check_fits(f"the weights at {name!r} hold", stored_shapes(name), wanted)
    folder = params_folder(name)
    with ocp.PyTreeCheckpointer() as reader:
        tree = unflatten(wanted)
        arguments = ocp.checkpoint_utils.construct_restore_args(tree)
        wish = ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True)
        try:
            restored = reader.restore(folder, args=wish)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise UserError(
                f"the weights at {name!r} are damaged ({reason}); import them anew"
            ) from error
    return flatten(restored)


def params_folder(name: str) -> Path:
    """The Orbax folder of a weights folder."""
    return (BUILT_IN.get(name, Path(name)) / "params").absolute()


def stored_shapes(name: str) -> dict[str, Any]:
    """Path of every parameter in a weights folder, with its `shape` and `dtype`.

    Raises:
      UserError: there is no such folder, or it is not complete.
    """
    read_meta(name)
    folder = params_folder(name)
    with ocp.PyTreeCheckpointer() as reader:
        try:
            metadata = reader.metadata(folder).item_metadata
        except (FileNotFoundError, ValueError):
            metadata = None
    if metadata is None:
        raise UserError(f"the weights at {name!r} are incomplete: {folder} cannot be read")
    return flatten(metadata.tree)


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
