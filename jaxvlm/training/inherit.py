"""`init_from`: parameters of another run, under a schedule, data and rules of one's own.

Where both language models have the same adapters and the same first layers apart, parameters are
taken as they are. Otherwise they are taken as the plain model's: adapters merged, and new ones
begun.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxvlm.console import console
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.models.adapted import adapters_of, layers_of, merged, plain_path, run_paths
from jaxvlm.models.lora import is_adapter
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vlm import PARTS, VLMConfig, vlm_config
from jaxvlm.paths import flatten
from jaxvlm.training.checkpoints import read_meta, stored_shapes
from jaxvlm.training.frozen import check_kept, kept_shapes
from jaxvlm.training.run import find_checkpoint, run_config, run_parameters
from jaxvlm.training.state import Params, abstract_parameters
from jaxvlm.training.weights import content, exist

_FIELD = "init_from"
# Fields of a part that two runs may have differently.
_FREE = ("weights", "dropout", "frozen_layers", "lora")


class Inheritance:
    """What a run takes from another.

    Attributes:
      folder: the other run's update.
      paths: of the run's parameters that were trained there, or stand nowhere else. The others are
        those that both configurations name.
      origin: tells this update of this run from others.
    """

    def __init__(self, config, model: VLMConfig):
        """Reads what the run `config.init_from` is.

        Raises:
          UserError: there is no such run, or its model is another.
        """
        self._name = config.init_from
        self.folder = find_checkpoint(Path(self._name), _FIELD)
        self._config = run_config(self.folder, [], _FIELD)
        self._check_model(config)
        check_kept(self.folder)
        self._known_here(config)
        other = vlm_config(self._config.model)
        self._languages = model.language, other.language
        same = _structure(model.language) == _structure(other.language)
        self._merges = not same
        known = abstract_parameters(other)
        sources = {
            path: [path] if same else list(_sources(path, other.language))
            for path in abstract_parameters(model)
        }
        self._sources = {p: s for p, s in sources.items() if s and set(s) <= set(known)}
        used = set().union(*self._sources.values())
        self._left = sorted({path.split("/")[0] for path in set(known) - used})
        stored = set(stored_shapes(self.folder)) | set(kept_shapes(self.folder.parent.parent))
        nameless = {part for part in PARTS if self._config.model[part].weights is None}
        self.paths = {
            path
            for path, found in self._sources.items()
            if stored.intersection(found) or path.split("/")[0] in nameless
        }
        self._check_named(config)
        described = (self.folder / "meta" / "metadata").read_bytes() + repr(sorted(stored)).encode()
        self.origin = f"{self.folder}, {hashlib.sha256(described).hexdigest()}"

    def _check_model(self, config) -> None:
        different = []
        for part in PARTS:
            mine, other = (flatten(c.model[part].to_dict()) for c in (config, self._config))
            if part == "geometry" and "none" in (mine["mode"], other["mode"]):
                continue
            different += [
                f"--config.model.{part}.{name}={other.get(name)!r}"
                for name, value in mine.items()
                if name.split("/")[0] not in _FREE and other.get(name) != value
            ]
        if different:
            raise UserError(
                f"init_from={self._name!r} is a run of another model; with its sizes: "
                f"{' '.join(different)}"
            )
        mine, other = config.text.tokenizer, self._config.text.tokenizer
        if mine != other and not load_tokenizer(mine).same_ids(load_tokenizer(other)):
            raise UserError(
                f"init_from={self._name!r} was trained with text.tokenizer={other!r}, in which "
                f"tokens have other ids than in {mine!r}; set text.tokenizer={other!r}"
            )

    def _known_here(self, config) -> None:
        """Weights may lie elsewhere than when that run was made."""
        frozen = read_meta(self.folder)["frozen"]
        for part in PARTS:
            name = config.model[part].weights
            if name is not None and exist(name) and content(name) == frozen.get(part):
                self._config.model[part].weights = name

    def _check_named(self, config) -> None:
        """Weights that it had, and did not train, must be the same here."""
        frozen = read_meta(self.folder)["frozen"]
        for part in sorted({p.split("/")[0] for p in set(self._sources) - self.paths}):
            name, other = config.model[part].weights, self._config.model[part].weights
            if name is None or not exist(name) or content(name) != frozen[part]:
                raise UserError(
                    f"init_from={self._name!r} did not train all of {part}, which it had from "
                    f"{other!r}; model.{part}.weights={name!r} are not these weights. Set "
                    f"model.{part}.weights={other!r}"
                )

    def parameters(self, likes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> Params:
        """The parameters of `paths` that are in `likes`, with dtype and sharding from there."""
        wanted = sorted(self.paths & set(likes))
        needed = {source for path in wanted for source in self._sources[path]}
        found = run_parameters(self.folder, self._config, mesh, needed)

        def take(found: Params) -> Params:
            return {path: value.astype(likes[path].dtype) for path, value in
                    self._values(wanted, found)}  # fmt: skip

        # One program: several processes must do all of it in the same order.
        placed = {path: likes[path].sharding for path in wanted}
        params = jax.jit(take, out_shardings=placed)(found)
        self._say(params, likes)
        return params

    def _values(self, wanted: Sequence[str], found: Params) -> Iterator[tuple[str, Array]]:
        """The values of the paths, from those that were `found` in the other run."""
        mine, other = self._languages
        if not self._merges:
            yield from ((path, found[path]) for path in wanted)
            return
        # What one plain parameter is split into, one after the other.
        for plain, paths in itertools.groupby(sorted(wanted, key=plain_path), plain_path):
            with jax.default_matmul_precision("highest"):
                value = merged(plain, other, found.__getitem__)
            for path in paths:
                layers = layers_of(path, mine)
                yield path, value if layers is None else value[layers]

    def _say(self, params: Params, likes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        adapters = self._merges and self._languages[1].lora is not None
        lacking = set(likes) - set(self._sources)
        anew = sorted({"adapters" if is_adapter(p) else p.split("/")[0] for p in lacking})
        console().print(
            f"init_from: {len(params)} tensors of {self.folder}"
            + (", its adapters added to their kernels" if adapters else "")
            + (f"; new here: {', '.join(anew)}" if anew else "")
            + (f"; its {' and '.join(self._left)} is not used" if self._left else "")
        )


def _structure(language: Qwen3Config) -> tuple:
    """What decides by which names a language model's parameters go."""
    lora = language.lora and dataclasses.replace(language.lora, dropout=0.0)
    return language.frozen_layers, lora


def _sources(path: str, other: Qwen3Config) -> Iterator[str]:
    """The parameters of another run that one parameter is made from as the plain model's."""
    if is_adapter(path):
        return
    for piece in run_paths(plain_path(path), other):
        yield piece
        yield from adapters_of(piece, other.lora) or ()
