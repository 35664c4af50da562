"""Parameter trees as flat dictionaries: `{"vision/aggregator/camera_token": leaf}` and back."""

from collections.abc import Mapping


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """A nested dict as `{"a/b/c": leaf}`, in the tree's order."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}/")
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
