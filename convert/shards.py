"""Files of tensors in PyTorch's formats, laid out first and filled tensor by tensor."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.draft import mapped
from convert.source import SAFETENSORS_DTYPES, Entry

_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}


def split(heads: Mapping[str, Entry], limit: int) -> list[dict[str, Entry]]:
    """Shares tensors out, in their order, to shards of at most `limit` bytes.

    A tensor that is larger by itself has a shard of its own.
    """
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for key, head in heads.items():
        if shards[-1] and size + head.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = head
        size += head.nbytes
    return shards


def lay_out(file: Path, heads: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Writes a safetensors file of zeros; returns each tensor's place in it, mapped into memory.

    The format is a header's length (8 bytes, little-endian), the header (JSON, padded with spaces)
    and the tensors one after the other (https://github.com/huggingface/safetensors).
    """
    described: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    # The widest first, so that every tensor begins at a multiple of its item's size.
    order = sorted(heads, key=lambda key: -heads[key].dtype.itemsize)
    end = 0
    for key in order:
        head, start = heads[key], end
        end += head.nbytes
        described[key] = {"dtype": _NAMES[np.dtype(head.dtype)], "shape": list(head.shape),
                          "data_offsets": [start, end]}  # fmt: skip
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    whole = mapped(file, 8 + len(header) + end)
    whole[:8] = np.frombuffer(len(header).to_bytes(8, "little"), np.uint8)
    whole[8 : 8 + len(header)] = np.frombuffer(header, np.uint8)
    data = whole[8 + len(header) :]
    places = {}
    for key in order:
        start, end = described[key]["data_offsets"]
        places[key] = data[start:end].view(heads[key].dtype).reshape(heads[key].shape)
    return places


def save_bin(file: Path, tensors: Mapping[str, np.ndarray], shared: Mapping[str, str]) -> None:
    """Writes PyTorch's own format; `shared` gives second names to tensors of the file."""
    import torch

    def wrapped(value: np.ndarray) -> torch.Tensor:
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    state = {key: wrapped(value) for key, value in tensors.items()}
    state |= {second: state[first] for second, first in shared.items() if first in state}
    torch.save(state, file)


def write_index(file: Path, shards: Iterable[tuple[str, Mapping[str, Entry]]]) -> None:
    """Writes which shard holds which tensor; `shards` are file names and their tensors."""
    places, size = {}, 0
    for name, heads in shards:
        places |= dict.fromkeys(heads, name)
        size += sum(head.nbytes for head in heads.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
