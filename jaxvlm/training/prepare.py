"""From a configuration to a run that can start: parameters on their devices, data, optimiser."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxvlm.console import print_table, say
from jaxvlm.data.sources import source_names
from jaxvlm.data.training_set import Rows, Usage, framing, run_rows
from jaxvlm.models.lora import is_adapter
from jaxvlm.models.vlm import VLMConfig, vlm_config
from jaxvlm.paths import flatten
from jaxvlm.training.frozen import (
    check_kept,
    frozen_identity,
    kept_origin,
    kept_shapes,
    restore_kept,
    vision_identity,
)
from jaxvlm.training.inherit import Inheritance
from jaxvlm.training.missing import check_weights
from jaxvlm.training.optimizer import Optimizer, Params, make_optimizer
from jaxvlm.training.parameters import Group, assign_groups, check_adapters, summary, trainable
from jaxvlm.training.processes import check_alike
from jaxvlm.training.setup import all_parameters, compute_dtype
from jaxvlm.training.state import (
    TrainState,
    abstract_parameters,
    abstract_state,
    new_state,
    placed_parameters,
)

# Passes over the same questions after which hardly anything is learnt.
_MANY_EPOCHS = 40
# Share of real tokens below which a warning is due.
_EMPTY = 0.6
# How many times the views that rows have on average let most sets find a place, and how many times
# the rows are worth saying so.
_ENOUGH_VIEWS, _MORE_ROWS = 1.25, 1.04


@dataclasses.dataclass
class Run:
    """Everything that stays the same from update to update.

    Attributes:
      model: sizes, without VGGT where its features are read from a cache.
      frozen: the frozen parameters.
      kept: the paths of those of them that came from another run.
      identity: of the frozen parameters.
      origin: of `Inheritance`, for those.
      validation: the rows of the held-out samples, or None.
    """

    config: object
    model: VLMConfig
    mesh: Mesh
    rows: Rows
    validation: Rows | None
    groups: dict[str, Group]
    frozen: Params
    kept: list[str]
    identity: dict[str, str]
    origin: str | None
    optimizer: Optimizer
    workdir: Path

    @property
    def rows_per_batch(self) -> int:
        """Rows of a global micro-batch."""
        return self.config.train.rows_per_device * jax.device_count()

    @property
    def rows_per_update(self) -> int:
        """Rows an update consumes."""
        return self.rows_per_batch * self.config.train.accumulation

    @property
    def learning(self) -> set[str]:
        """The paths of the parameters that learn."""
        return trainable(self.groups)

    @property
    def sources(self) -> list[str]:
        """The names of the training data's sources."""
        return source_names(self.config.data.train)

    @property
    def image(self) -> tuple[int, int]:
        """Height and width in pixels of what VGGT sees."""
        frame = framing(self.config)
        return frame.height, frame.width

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rate of each group in update `step`, from 0, as `lr/GROUP`."""
        factor = float(self.optimizer.factor(step))
        names = sorted({self.groups[path].name for path in self.learning})
        rates = self.config.optimizer.learning_rate
        return {f"lr/{name}": rates[name] * factor for name in names}

    def meta(self, step: int) -> dict:
        """What is stored beside the parameters."""
        return {
            "position": step * self.rows_per_update,
            "config": self.config.to_dict(),
            "frozen": self.identity,
            "data": self.rows.fingerprint,
            "mesh": dict(self.mesh.shape),
            "processes": jax.process_count(),
        }


def prepare(config, workdir: Path, mesh: Mesh, resumed: Path | None) -> tuple[Run, TrainState]:
    """A run before its first update.

    Args:
      config: checked.
      workdir: of the run.
      mesh: devices.
      resumed: the folder of the update that the state will come from; the state given back is
        abstract then. None for a new run, which begins.

    Raises:
      UserError: anything wrong with what the user gave.
    """
    model = vlm_config(config.model)
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    check_adapters(groups)
    learning = trainable(groups)
    source = _source(config, model, workdir, mesh, resumed, learning)
    kept = source.paths - learning
    named = {path for path in set(shapes) - source.paths if not is_adapter(path)}
    check_weights(config.model, {path.split("/")[0] for path in named})
    train = config.train
    rows_total = train.max_steps * train.accumulation * train.rows_per_device * jax.device_count()
    cached = config.data.features.folder is not None
    vision = vision_identity(config, groups, kept) if cached else None
    rows, validation = run_rows(config, rows_total, vision)
    identity = frozen_identity(config, groups, kept, source.origin)
    fields = {f"--config.{n.replace('/', '.')}": v for n, v in flatten(config.to_dict()).items()}
    check_alike({"fields of the configuration": sorted(fields)})
    check_alike(
        fields
        | {
            "update to go on from": resumed and resumed.name,
            "records in data.train": rows.fingerprint,
            "frozen weights": identity,
            "number of devices": jax.local_device_count(),
        }
    )
    likes = placed_parameters(model, groups, compute_dtype(config), mesh)
    likes = {p: like for p, like in likes.items() if not (cached and p.startswith("vision/"))}
    skip = source.paths | (set(shapes) - set(likes))
    parameters = all_parameters(config, model, groups, mesh, skip=frozenset(skip))
    parameters |= source.read(likes)
    # In the order of the model, which is the same in every process.
    learning = [path for path in shapes if path in learning]
    optimizer = make_optimizer(
        {p: groups[p] for p in learning}, config.optimizer, config.train.max_steps
    )
    if cached:
        model = dataclasses.replace(model, vision=None)
    frozen = {p: parameters[p] for p in likes if p not in learning}
    run = Run(
        config, model, mesh, rows, validation, groups, frozen, sorted(kept), identity,
        source.origin, optimizer, workdir,
    )  # fmt: skip
    if resumed is not None:
        return run, abstract_state({p: likes[p] for p in learning}, optimizer, mesh)
    return run, new_state({p: parameters[p] for p in learning}, optimizer, mesh)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a run's parameters come from that its configuration names no weights for.

    Attributes:
      paths: of the parameters.
      origin: of `Inheritance`, if they came from another run.
      read: gives them as they are wanted; without those of a checkpoint, which are read later.
    """

    paths: set[str]
    origin: str | None
    read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Params]


def _source(
    config, model: VLMConfig, workdir: Path, mesh: Mesh, resumed: Path | None, learning: set[str]
) -> _Source:
    """What a run goes on from, or begins with."""
    if resumed is not None:
        check_kept(resumed)
        kept = sorted(kept_shapes(workdir))
        return _Source(
            learning | set(kept),
            kept_origin(workdir),
            lambda likes: restore_kept(workdir, {path: likes[path] for path in kept}),
        )
    if config.init_from is not None:
        other = Inheritance(config, model)
        return _Source(other.paths, other.origin, lambda likes: other.parameters(likes, mesh))
    return _Source(set(), None, lambda likes: {})


def print_start(run: Run) -> None:
    """The table of parameter groups, and what the run amounts to."""
    config = run.config
    shapes = abstract_parameters(vlm_config(config.model))
    table = summary(run.groups, shapes, config.optimizer.learning_rate)
    if config.data.features.folder is not None:
        table = [row for row in table if row[0] != "vision"]
    columns = ("part", "group", "learning rate", "tensors", "parameters")
    print_table("Parameters", columns, table)
    usage = run.rows.usage()
    epochs = len(run.rows) / usage.rows
    each = usage.samples / usage.rows
    say(
        f"{config.train.max_steps} updates of {run.rows_per_update} rows (about "
        f"{run.rows_per_update * each:,.0f} samples); the data makes {usage.samples:,} samples in "
        f"{usage.rows:,} rows an epoch: {epochs:.1f} epochs on "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    )
    if config.data.pack:
        _say_fill(run, usage)
    if run.validation is not None:
        files = ", ".join(spec["path"] for spec in config.data.val)
        say(
            f"validation every {config.train.eval_every} updates on "
            f"{run.validation.usage().samples:,} samples of {files or 'scenes that are held out'}, "
            "which are not trained on"
        )
    if epochs > _MANY_EPOCHS:
        say(
            f"warning: more than {_MANY_EPOCHS} epochs of the same questions; fewer updates "
            "(train.max_steps) or fewer rows in each (train.accumulation, train.rows_per_device) "
            "would do"
        )


def _say_fill(run: Run, usage: Usage) -> None:
    """How full rows are, and what would fill them better."""
    say(
        f"rows hold {usage.samples / usage.rows:.1f} samples: {usage.tokens:.1%} of their tokens "
        f"are real, {usage.sets:.1%} of their places for image sets are taken, and "
        f"{usage.views:.1%} of those for views"
    )
    if usage.tokens < _EMPTY:
        say(
            "warning: the rest is computed for nothing. A larger data.row_sets or "
            "data.questions_per_set, or a smaller data.row_length, fills rows better"
        )
    if run.config.data.features.folder is None:
        _say_views(run.config.data, usage, run.rows)


def _say_views(data, usage: Usage, rows: Rows) -> None:
    """Whether rows have too few places for views, or more than they need."""
    capacity = rows.builder.capacity
    if data.row_views:
        without = rows.plan.rows_with(capacity.sets * data.num_views)
        if usage.rows > _MORE_ROWS * without:
            say(
                f"warning: with data.row_views={data.row_views} an epoch has {usage.rows:,} rows "
                f"instead of {without:,}; raise it, or set it to 0"
            )
        return
    mean = usage.views * capacity.views
    enough = max(math.ceil(mean * _ENOUGH_VIEWS), data.num_views)
    if enough < capacity.views and rows.plan.rows_with(enough) <= _MORE_ROWS * usage.rows:
        say(
            f"VGGT sees all {capacity.views} places for views of a row, which has {mean:.1f} on "
            f"average; with data.row_views={enough} it sees fewer, in about as many rows"
        )
