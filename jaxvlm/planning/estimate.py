"""What a run will take on so many devices: memory, operations, traffic and time."""

import dataclasses
import math

from jaxvlm.data.training_set import framing, row_capacity
from jaxvlm.models.vlm import vlm_config
from jaxvlm.planning.compiled import StepBytes
from jaxvlm.planning.inputs import batch_shapes
from jaxvlm.planning.state_bytes import StateBytes, Traffic, state_bytes, traffic
from jaxvlm.training.feed import AHEAD
from jaxvlm.training.hardware import MACHINE, Accelerator
from jaxvlm.training.parameters import assign_groups, trainable
from jaxvlm.training.setup import compute_dtype
from jaxvlm.training.state import abstract_parameters
from jaxvlm.training.work import Work, forward_flops, model_flops, trained_shares

# Of the operations that are really made, padding and recomputation among them.
UTILISATION = 0.40
UTILISATION_SOURCE = (
    "40% of the peak, as torchtitan trains Llama-3.1-8B in bfloat16 on 8 H100 (39%)"
)
# The share of a device's memory that a run may plan with: the launchers give JAX 0.9 of it, and
# allocating in pieces wastes some.
USABLE = 0.88
# Micro-batches on a device: two are computed, one is sent, the others wait.
_BATCHES = 3 + AHEAD
# Bytes a second between a host and its GPU, PCIe 4 x16 in practice.
_PCIE = 25e9
# A worker process that reads images, and the process itself, in bytes of the host.
_WORKER, _PROCESS = 0.6e9, 3e9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A setting on so many devices; bytes, operations and seconds are of one device.

    Attributes:
      data: size of the mesh's axis.
      fsdp: size of the mesh's axis.
      rows_per_device: of a micro-batch.
      accumulation: micro-batches an update.
      remat: what is computed again.
      state: what stays from update to update.
      batch: bytes of the micro-batches that are there.
      temporary: what the larger of the steps makes on the way.
      peak: the most at any time.
      useful_flops: of an update without padding that is known beforehand, and recomputation.
      computed_flops: of an update, all that is computed.
      traffic: of a micro-batch.
      compute_seconds: of a micro-batch.
      traffic_seconds: of a micro-batch, most of which hides behind those.
      seconds: of an update.
      host: bytes of a machine's memory.
    """

    data: int
    fsdp: int
    rows_per_device: int
    accumulation: int
    remat: str
    state: StateBytes
    batch: int
    temporary: int
    peak: int
    useful_flops: float
    computed_flops: float
    traffic: Traffic
    compute_seconds: float
    traffic_seconds: float
    seconds: float
    host: float

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.data * self.fsdp

    @property
    def mfu(self) -> float:
        """Useful operations over what the devices could do, of the same seconds."""
        return (
            UTILISATION
            * self.useful_flops
            / self.computed_flops
            * (self.accumulation * self.compute_seconds / self.seconds)
        )


def estimate(
    config,
    data: int,
    fsdp: int,
    steps: dict[str, StepBytes],
    device: Accelerator,
    compiled_fsdp: int | None = None,
) -> Estimate:
    """What a configuration takes.

    Args:
      config: with the rows, accumulation and rematerialisation meant.
      data: size of the mesh's axis.
      fsdp: size of the mesh's axis.
      steps: as compiled.
      device: what computes.
      compiled_fsdp: the axis that they were compiled with, where it was another.
    """
    train = config.train
    rows = train.rows_per_device
    state, moved = state_bytes(config, fsdp), traffic(config, data, fsdp)
    batch = sum(
        math.prod(like.shape) * like.dtype.itemsize for like in batch_shapes(config, rows).values()
    )
    offloaded = config.optimizer.offload == "host"
    resident = sum(state) - (state.optimizer if offloaded else 0)
    temporary = max(step.temporary for step in steps.values())
    if compiled_fsdp is not None:
        # Copies in the dtype of the computation, and gradients in it, are split like the masters.
        more = state.parameters - state_bytes(config, compiled_fsdp).parameters
        temporary += 2 * more * compute_dtype(config).dtype.itemsize // 4
    peak = resident + _BATCHES * batch + temporary
    useful, computed = (train.accumulation * flops for flops in _flops(config))
    compute = computed / train.accumulation / (device.peak(config.precision) * UTILISATION)
    through = device.link if fsdp <= MACHINE else device.network
    across = device.link if data * fsdp <= MACHINE else device.network
    moving = moved.fsdp / through + moved.data / across
    # The update reads and writes every state once, and nothing else is worth counting.
    update = 2 * sum(state) / device.bandwidth
    if offloaded:
        update += 2 * state.optimizer / _PCIE
    # Communication hides behind computation, as far as that lasts.
    seconds = train.accumulation * max(compute, moving) + update
    machine = min(MACHINE, data * fsdp)
    host = _PROCESS + config.data.num_workers * _WORKER + 4 * batch * machine
    host += state.optimizer * machine if offloaded else 0
    # A checkpoint is copied before it is written.
    host += (state.parameters + state.optimizer) * machine
    return Estimate(
        data, fsdp, rows, train.accumulation, train.remat, state, _BATCHES * batch, temporary, peak,
        useful,
        computed, moved, compute, moving, seconds, host,
    )  # fmt: skip


def fits(found: Estimate, device: Accelerator) -> bool:
    """Whether it will run."""
    return found.peak <= USABLE * device.memory


def _flops(config) -> tuple[float, float]:
    """Useful and computed operations of a device's micro-batch, every place taken.

    Places that a row has for views, sets and tokens are taken as full: how full they are, the
    start of a run says of its data. Useful attention of the decoder is the causal half of samples
    of `text.max_length`; computed is that of the whole row.
    """
    model, frame = vlm_config(config.model), framing(config)
    image = frame.height, frame.width
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    shares = trained_shares(shapes, trainable(groups))
    like = batch_shapes(config, config.train.rows_per_device)
    rows, tokens = like["tokens"].shape
    sets = like["view_counts"].shape[1] * rows
    views = row_capacity(config.data).views * rows
    length = min(config.text.max_length, tokens)
    full = Work(
        samples=rows * tokens / length,
        tokens=rows * tokens,
        pairs=rows * tokens * (length + 1) / 2,
        sets=sets,
        views=views,
        squares=views * config.data.num_views,
        labels=like["labels"].size,
    )
    cached = config.data.features.folder is not None
    useful = model_flops(model, full, image, shares, cached)
    # Attention across views is given sets with all their places.
    squares = sets * config.data.num_views**2
    whole = full._replace(pairs=rows * tokens**2, squares=squares)
    computed = model_flops(model, whole, image, shares, cached)
    # What the backward pass makes again: attention's scores always, and the layers' forward pass;
    # with "dots" that of VGGT alone, where it learns.
    again = {"none": (), "dots": ("vision",), "full": ("vision", "projector", "language")}
    for part, flops in forward_flops(model, whole, image, cached).items():
        if part in ("projector", "language") or shares[part] > 0:
            computed += flops.attention / 2
            if part in again[config.train.remat]:
                computed += flops.linear + flops.attention
    return useful, computed
