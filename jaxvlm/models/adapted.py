"""Between the parameters of a run, which may have adapters and its first layers apart, and those of
the plain model, which weights on disk have.
"""

from collections.abc import Callable
from typing import Any

from jaxvlm.models.lora import LoraConfig
from jaxvlm.models.qwen3 import Qwen3Config

_STACK, _FROZEN_STACK = "language/layers/", "language/frozen_layers/"


def plain_path(path: str) -> str:
    """The plain model's parameter that a run's parameter (but no adapter) is, or is a part of."""
    return path.replace(_FROZEN_STACK, _STACK)


def layers_of(path: str, language: Qwen3Config) -> slice | None:
    """Which layers of the plain parameter's stack a run's parameter holds; None for all of it."""
    if not language.frozen_layers:
        return None
    if path.startswith(_FROZEN_STACK):
        return slice(0, language.frozen_layers)
    return slice(language.frozen_layers, None) if path.startswith(_STACK) else None


def run_paths(path: str, language: Qwen3Config) -> list[str]:
    """The run's parameters, adapters apart, that the plain parameter consists of, in order."""
    if language.frozen_layers and path.startswith(_STACK):
        return [path.replace(_STACK, _FROZEN_STACK), path]
    return [path]


def adapters_of(path: str, lora: LoraConfig | None) -> tuple[str, str] | None:
    """The two parameters of the adapter beside a kernel of a run, if it has one."""
    head, _, name = path.rpartition("/")
    if lora is None or name != "kernel" or not path.startswith(_STACK):
        return None
    return (f"{head}/lora_a", f"{head}/lora_b") if head.split("/")[-1] in lora.targets else None


def merged(path: str, language: Qwen3Config, read: Callable[[str], Any]) -> Any:
    """The plain parameter: its layers together, adapters added to their kernels in float32.

    Args:
      path: of the plain model.
      language: sizes of the run.
      read: gives the run's parameters by path, each of which is asked for once: arrays of numpy or
        of jax, as is what comes back.
    """
    pieces = []
    for part in run_paths(path, language):
        value, adapters = read(part), adapters_of(part, language.lora)
        xp = value.__array_namespace__()
        if adapters:
            a, b = (xp.astype(read(name), xp.float32) for name in adapters)
            value = xp.astype(value, xp.float32) + language.lora.scale * (a @ b)
        pieces.append(value)
    if len(pieces) == 1:
        return pieces[0]
    return xp.concat([xp.astype(piece, pieces[-1].dtype) for piece in pieces])
