"""Shards of features: safetensors files that are mapped into memory, never read as a whole.

A file is a header's length (8 bytes, little-endian), the header (JSON: dtype, shape and place of
every tensor) and the tensors (https://github.com/huggingface/safetensors). The library writes them;
its numpy reader knows no bfloat16 and copies, so tensors are found by the header here.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxvlm.errors import UserError, first_line
from jaxvlm.files import draft_of
from jaxvlm.shares import WHOLE, Share


class DamagedShard(UserError):
    """A file that is no whole shard."""


DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_NAMED = {"BF16": DTYPES["bfloat16"], "F32": DTYPES["float32"]}
_NAME = re.compile(r"features-(\d{5})\.safetensors")
_DRAFT = re.compile(_NAME.pattern + r"\.[0-9a-f]{12}\.draft")
# A header of a file that is none may claim any length.
_LONGEST_HEADER = 100_000_000


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Shards(Mapping[str, np.ndarray]):
    """The tensors of a folder's shards by name, each a view of the mapped file.

    Attributes:
      places: where they lie.
    """

    def __init__(self, folder: Path, label: str):
        """Reads the headers.

        Raises:
          UserError: a shard that is damaged, or has another label.
        """
        self.places: dict[str, Place] = {}
        for path in shard_files(folder):
            self.places |= read_header(path, label)
        self._maps: dict[str, np.memmap] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        place = self.places[name]
        if place.file not in self._maps:
            try:
                self._maps[place.file] = np.memmap(place.file, np.uint8, "r")
            except (OSError, ValueError) as error:
                raise UserError(f"{place.file} cannot be read: {error}") from None
        size = int(np.prod(place.shape)) * place.dtype.itemsize
        raw = self._maps[place.file][place.offset : place.offset + size]
        if len(raw) < size:
            raise UserError(f"{place.file} has become shorter since it was opened")
        return raw.view(place.dtype).reshape(place.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict:
        # Worker processes map the files themselves.
        return {**self.__dict__, "_maps": {}}


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder in the order they were written."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def draft_files(folder: Path) -> list[tuple[int, Path]]:
    """What a killed process left of shards it was writing, with their numbers."""
    found = ((_DRAFT.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in found if match]


def read_header(path: Path, label: str) -> dict[str, Place]:
    """The tensors of a shard.

    Args:
      path: of the shard.
      label: what it must be labelled with: features of other making have another one.

    Raises:
      DamagedShard: the file is no shard or is cut short.
      UserError: it cannot be read, or is labelled otherwise.
    """
    try:
        whole = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, whole - 8):
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        found = header.pop("__metadata__", {}).get("label")
        places = {}
        for name, tensor in header.items():
            start, end = (int(edge) for edge in tensor["data_offsets"])
            shape = tuple(int(side) for side in tensor["shape"])
            dtype = _NAMED[tensor["dtype"]]
            size = int(np.prod(shape)) * dtype.itemsize
            if min(shape, default=0) < 1 or start < 0 or end - start != size:
                raise ValueError(f"the size of {name!r} is not that of its shape")
            places[name] = Place(str(path), 8 + length + start, shape, dtype)
        ends = [tensor["data_offsets"][1] for tensor in header.values()]
        due = 8 + length + max(ends, default=0)
        if whole != due:
            raise ValueError(f"it has {whole:,} bytes, {due:,} should be")
    except OSError as error:
        raise UserError(f"the feature shard {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShard(
            f"the feature shard {path} is damaged ({error}); run python -m jaxvlm.cache_features "
            "again, which makes its features anew"
        ) from None
    if found != label:
        raise UserError(
            f"the feature shard {path} is of another cache: its features were made from something "
            "else; take it out of the folder"
        )
    return places


def write_shard(
    folder: Path, tensors: Mapping[str, np.ndarray], label: str, share: Share = WHOLE
) -> None:
    """Writes a further shard of a folder, whole or not at all, with a number of the `share`.

    Raises:
      UserError: it cannot be written.
    """
    path = _free(folder, share)
    draft = draft_of(path)
    try:
        save_file(dict(tensors), draft, {"label": label})
        # The library lets nobody else read its files.
        draft.chmod(0o666 & ~_umask())
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        while True:
            try:
                # Not renamed: another job may have taken the number meanwhile.
                os.link(draft, path)
                break
            except FileExistsError:
                path = _free(folder, share)
    # What the library raises for a full disk is an error of its own.
    except Exception as error:
        raise UserError(
            f"{path} cannot be written: {first_line(error)}. The shards before it stand; "
            "make room, and the same command goes on behind them"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _free(folder: Path, share: Share) -> Path:
    """The next shard's place, with a number of the share."""
    taken = [int(_NAME.fullmatch(path.name)[1]) for path in shard_files(folder)]
    number = max(taken, default=-1) + 1
    while not share.owns(number):
        number += 1
    return folder / f"features-{number:05}.safetensors"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
