"""PyTorch weights on disk: what a file, a folder or a hub name holds, read tensor by tensor.

Nothing is run that a file brings along: pickles are read with `torch.load(weights_only=True)`.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxvlm.errors import UserError

# What a state dict is wrapped in by the people who save one.
_WRAPPERS = ("model", "state_dict")
# The small files of a Hugging Face folder that go with the weights.
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja")  # fmt: skip
# Folders of the original with whole weights, in its own order.
_ORIGINAL_FOLDERS = ("pytorch_model_fp32", "pytorch_model_fp32.bin")
# Files of a checkpoint folder that end like weights and are none.
_STATES = ("scheduler.bin", "optimizer.bin", "training_args.bin", "scaler.pt")
SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor in a file (or an Orbax folder), not yet read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or more files by name; each is read when it is asked for."""

    def __init__(self, files: list[Path]):
        """Reads the heads of the files.

        Raises:
          UserError: a file that cannot be read, or two files with a tensor of one name.
        """
        self.files = files
        self._readers = {file: _reader(file) for file in files}
        self.entries: dict[str, Entry] = {}
        for file, reader in self._readers.items():
            for name, (shape, dtype) in reader.heads().items():
                if name in self.entries:
                    other = self.entries[name].file
                    raise UserError(f"both {other} and {file} hold the tensor {name!r}")
                self.entries[name] = Entry(shape, np.dtype(dtype), file)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.files[0].parent

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[self.entries[name].file].read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def open_tensors(path: Path) -> Tensors:
    """The tensors of a file, or of a folder with one file or with an index and its shards.

    Raises:
      UserError: there are none, an index that names what is not there or lies outside the folder,
        or a file that cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return Tensors([path])
    indices = sorted(path.glob("*.index.json"))
    # A folder with both formats holds the same weights twice.
    indices = [p for p in indices if ".safetensors." in p.name] or indices
    if len(indices) > 1:
        raise UserError(f"{path} holds {len(indices)} index files; give one folder a model")
    if indices:
        return _indexed(path, indices[0])
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth"):
        files = sorted(path.glob(pattern))
        if len(files) > 1:
            raise UserError(
                f"{path} holds {len(files)} files {pattern} and no index that says how they belong "
                "together; give the file, or add its *.index.json"
            )
        if files:
            return Tensors(files)
    raise UserError(f"{path} holds no weights (*.safetensors, *.bin, *.pt)")


def open_original(path: Path) -> Tensors:
    """The tensors of a checkpoint of the original, found in its own order.

    `pytorch_model_fp32/`, then `pytorch_model_fp32.bin/`, then any `*.bin` or `*.safetensors`.

    Raises:
      UserError: only shards of DeepSpeed's ZeRO are there, or nothing, or it cannot be read.
    """
    if not path.is_dir():
        return open_tensors(path)
    for name in _ORIGINAL_FOLDERS:
        if (path / name).is_dir():
            return open_tensors(path / name)
    if list(path.glob("*.index.json")):
        return open_tensors(path)
    for pattern in ("*.bin", "*.safetensors"):
        files = [file for file in sorted(path.glob(pattern)) if file.name not in _STATES]
        if files:
            return Tensors(files)
    shards = sorted([*path.glob("mp_rank_*"), *path.glob("*/mp_rank_*"),
                     *path.glob("zero_pp_rank_*"), *path.glob("*/zero_pp_rank_*")])  # fmt: skip
    if shards:
        inside = shards[0].parent
        top = path if inside != path else path.parent
        raise UserError(
            f"{path} holds only the ZeRO shards of DeepSpeed ({shards[0].relative_to(top)}); join "
            f"them first: cd {top} && python zero_to_fp32.py {inside.name} pytorch_model_fp32"
        )
    raise UserError(f"{path} holds neither pytorch_model_fp32/ nor any *.bin or *.safetensors")


def _indexed(folder: Path, index: Path) -> Tensors:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards: {error!r}") from None
    for name in names:
        inside = isinstance(name, str) and Path(name).name == name and name not in ("", "..")
        if not inside:
            raise UserError(f"{index} names {name!r}, which does not lie in its folder; refused")
        if not (folder / name).is_file():
            raise UserError(f"{index} names the shard {name!r}, which is missing")
    tensors = Tensors([folder / name for name in names])
    for key, name in weight_map.items():
        if key not in tensors or tensors.entries[key].file != folder / name:
            raise UserError(f"{index} says that {name!r} holds the tensor {key!r}; it does not")
    for key in tensors:
        if key not in weight_map:
            raise UserError(f"{index} does not know the tensor {key!r} of its shards")
    return tensors


class _Safetensors:
    """A `.safetensors` file."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is no whole safetensors file: {error}") from None

    def heads(self) -> dict:
        """Shape and dtype of every tensor, none of them read."""
        heads = {}
        for name in self._file.keys():  # noqa: SIM118 - not a mapping
            part = self._file.get_slice(name)
            kind = part.get_dtype()
            if kind not in SAFETENSORS_DTYPES:
                raise UserError(
                    f"{self._path}: the tensor {name!r} is of {kind}; expected one of "
                    f"{', '.join(SAFETENSORS_DTYPES)}"
                )
            heads[name] = tuple(part.get_shape()), SAFETENSORS_DTYPES[kind]
        return heads

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._file.get_tensor(name)


class _Pickle:
    """A `.pt` or `.bin` file, mapped into memory."""

    def __init__(self, path: Path):
        # Not at the top: safetensors need no torch.
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{path} can be read with PyTorch only: pip install 'jaxvlm[convert]'"
            ) from None
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            if "_use_new_zipfile_serialization" in first:
                raise UserError(
                    f"{path} is no whole file of torch.save: it is cut off (download it again), "
                    "or was written by PyTorch before 1.6 (load and save it with a later one)"
                ) from None
            raise UserError(
                f"{path} cannot be read as plain tensors ({type(error).__name__}: {first}). A file "
                "that is cut off must be downloaded again; one that needs to run code is refused: "
                "save it with torch.save(model.state_dict(), …) where you trust it"
            ) from None
        while isinstance(loaded, dict) and not _is_state_dict(loaded):
            inner = next((loaded[n] for n in _WRAPPERS if isinstance(loaded.get(n), dict)), None)
            if inner is None:
                other = [key for key, value in loaded.items() if not hasattr(value, "shape")]
                raise UserError(
                    f"{path} holds no state dict of tensors alone: expected it by itself or under "
                    f"{' or '.join(map(repr, _WRAPPERS))}; no tensors are {other[:5]}"
                )
            loaded = inner
        if not isinstance(loaded, dict):
            raise UserError(f"{path} holds a {type(loaded).__name__}, expected a state dict")
        self._state, self._torch = loaded, torch
        for name, value in loaded.items():
            if value.layout != torch.strided or value.is_quantized:
                raise UserError(f"{path}: {name!r} is sparse or quantized; save it dense")

    def heads(self) -> dict:
        """Shape and dtype of every tensor, none of them read."""
        return {
            name: (tuple(value.shape), self._dtype(value)) for name, value in self._state.items()
        }

    def _dtype(self, value) -> np.dtype:
        if value.dtype == self._torch.bfloat16:
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(str(value.dtype).removeprefix("torch."))

    def read(self, name: str) -> np.ndarray:
        """One tensor, which stays in the file's mapping."""
        value = self._state[name].detach()
        if value.dtype == self._torch.bfloat16:
            return value.contiguous().view(self._torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()


def _is_state_dict(loaded: dict) -> bool:
    return bool(loaded) and all(hasattr(value, "shape") for value in loaded.values())


def _reader(path: Path) -> _Safetensors | _Pickle:
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path)
