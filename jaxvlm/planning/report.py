"""A plan: estimates for several numbers of devices, a recommendation, and how they are shown."""

import dataclasses
import json

from jaxvlm.config import AUTO
from jaxvlm.console import duration, print_table, say
from jaxvlm.planning.choice import REMAT, recommend, smaller, with_setting
from jaxvlm.planning.compiled import StepBytes, cuda_compiles, in_a_child
from jaxvlm.planning.estimate import USABLE, UTILISATION_SOURCE, Estimate, estimate, fits
from jaxvlm.training.hardware import Accelerator, gib
from jaxvlm.training.mesh import mesh_sizes

# Numbers of devices that the last table shows besides those that were asked for.
_SCALES = (1, 8, 16, 64, 256, 1024)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a configuration's runs.

    Attributes:
      device: what they run on.
      target: what the steps were compiled for: the device's name, or "cpu".
      asked: as configured, on each number of devices that was asked for.
      others: on other numbers, with the work space of the nearest that was compiled.
      sought: whether a better setting was looked for.
      recommended: for the first number, with its flags; None if nothing fits, or nobody asked.
      flags: of the recommended setting.
      smaller: what would take less still, where nothing fits.
      updates: of the whole run.
    """

    device: Accelerator
    target: str
    asked: list[Estimate]
    others: list[Estimate]
    sought: bool
    recommended: Estimate | None
    flags: str
    smaller: list[str]
    updates: int


def make_plan(config, counts: list[int], device: Accelerator, recommends: bool) -> Plan:
    """Compiles and estimates.

    Args:
      config: checked.
      counts: numbers of devices.
      device: of which kind.
      recommends: whether to look for the best setting on the first number.

    Raises:
      UserError: a mesh that cannot be, or a step that does not compile.
    """
    target = device.name if cuda_compiles() else None
    known: dict[tuple, dict[str, StepBytes]] = {}

    def compiled(setting, mesh: tuple[int, int]) -> dict[str, StepBytes]:
        train = setting.train
        key = (*mesh, train.remat, train.rows_per_device, setting.optimizer.offload)
        if key not in known:
            # Half a minute at full size; how many there will be depends on what fits. Not to the
            # output, which is the plan alone.
            say(
                f"compiling for a mesh of data {mesh[0]} x fsdp {mesh[1]}: "
                f"{train.rows_per_device} row(s), remat {train.remat}, optimizer on the "
                f"{setting.optimizer.offload}",
                warns=True,
            )
            known[key] = in_a_child(setting, mesh, target)
        return known[key]

    def planned(mesh: tuple[int, int], like: tuple[int, int]) -> Estimate:
        """As a run would be, with the work space of another mesh."""
        remats = REMAT if config.train.remat == AUTO else (config.train.remat,)
        for remat in remats:
            setting = with_setting(config, remat, config.optimizer.offload)
            found = estimate(setting, *mesh, compiled(setting, like), device, like[1])
            if fits(found, device):
                break
        return found

    meshes = [_mesh(config, count) for count in counts]
    asked = [planned(mesh, mesh) for mesh in meshes]
    best = recommend(config, counts[0], device, compiled) if recommends else None
    others = []
    for count in _SCALES:
        # A mesh with a given axis is for some numbers only.
        given = max(config.mesh.data, config.mesh.fsdp, 1)
        if count not in counts and -1 in (config.mesh.data, config.mesh.fsdp) and not count % given:
            nearest = min(meshes, key=lambda mesh: abs(mesh[0] * mesh[1] - count))
            others.append(planned(_mesh(config, count), nearest))
    flags, less = "", []
    if recommends and not best:
        # Behind the last that was tried.
        least = with_setting(config, "full", "host")
        least.train.rows_per_device = 1
        less = list(smaller(least))
    if best:
        setting, found = best
        wanted = {
            "mesh.data": found.data,
            "mesh.fsdp": found.fsdp,
            "train.rows_per_device": found.rows_per_device,
            "train.accumulation": found.accumulation,
            "train.remat": found.remat,
            "optimizer.offload": setting.optimizer.offload,
        }
        flags = " ".join(f"--config.{name}={value}" for name, value in wanted.items())
    recommended = best and best[1]
    updates = config.train.max_steps
    return Plan(
        device, target or "cpu", asked, others, recommends, recommended, flags, less, updates
    )


def _mesh(config, count: int) -> tuple[int, int]:
    return mesh_sizes(config.mesh.data, config.mesh.fsdp, count)


def show(plan: Plan) -> None:
    """Prints a plan as tables."""
    device, first = plan.device, plan.asked[0]
    here = "compiled" if plan.target != "cpu" else "compiled for CPU: an upper bound"
    whole = plan.updates * first.seconds
    rows = [
        ("parameters that learn, float32", _gib(first.state.parameters), "from shapes"),
        ("frozen parameters", _gib(first.state.frozen), "from shapes"),
        ("gradients, summed in float32", _gib(first.state.gradients), "from shapes"),
        ("optimizer", _gib(first.state.optimizer), "from shapes"),
        ("micro-batches, computed and waiting", _gib(first.batch), "from shapes"),
        ("activations and work space", _gib(first.temporary), here),
        (f"peak, of {_gib(device.memory)}", _gib(first.peak), _verdict(first, plan)),
        ("host memory a machine", _gib(first.host), "formula"),
        ("operations an update", f"{first.computed_flops / 1e12:,.3g} TFLOP", "formula"),
        ("received a micro-batch", f"{sum(first.traffic) / 1e9:,.3g} GB", "formula"),
        ("a micro-batch's computation", f"{first.compute_seconds:.3g} s", "formula"),
        ("a micro-batch's communication", f"{first.traffic_seconds:.3g} s", "formula"),
        ("an update", f"{first.seconds:.3g} s", "formula"),
        (
            f"all {plan.updates:,} updates",
            f"{duration(whole)}, {whole * first.devices / 3600:,.3g} device hours",
            "formula",
        ),
    ]
    print_table(f"A device of {first.devices} {device.name}: {_setting(first)}",
                ("what", "how much", "known by"), rows)  # fmt: skip
    scaled = sorted([*plan.asked, *plan.others], key=lambda found: found.devices)
    rows = [
        (
            found.devices,
            f"{found.data} x {found.fsdp}",
            found.remat,
            _gib(found.peak),
            _verdict(found, plan),
            f"{sum(found.traffic) / 1e9:,.3g} GB",
            f"{found.traffic_seconds / found.compute_seconds:.0%}",
            f"{found.seconds:.3g} s",
            f"{found.mfu:.0%}",
        )
        for found in scaled
    ]
    columns = (
        "devices",
        "data x fsdp",
        "remat",
        "peak",
        "memory",
        "received",
        "traffic / work",
        "update",
        "MFU",
    )
    print_table("Other numbers of devices, the same micro-batch each", columns, rows)
    say(f"time: {UTILISATION_SOURCE}; {device.source}")
    if plan.recommended:
        say(
            f"recommended on {plan.recommended.devices}: {_setting(plan.recommended)}, peak "
            f"{_gib(plan.recommended.peak)}, {plan.recommended.seconds:.3g} s an update:\n"
            f"  {plan.flags}"
        )
    elif plan.sought:
        but = "" if plan.target != "cpu" else " as compiled for CPU, which is an upper bound"
        say(
            f"nothing fits {first.devices} {device.name}{but}: not one row a device with remat "
            f"full and the optimizer on the host. What takes less: "
            f"{'; '.join([*plan.smaller, 'more devices'])}"
        )


def as_json(plan: Plan) -> str:
    """All of a plan."""
    found = dataclasses.asdict(plan)
    for name in ("asked", "others"):
        for entry, each in zip(found[name], getattr(plan, name), strict=True):
            entry |= {"devices": each.devices, "fits": fits(each, plan.device), "mfu": each.mfu}
            entry |= {"state": each.state._asdict(), "traffic": each.traffic._asdict()}
    return json.dumps(found, indent=2)


def _setting(found: Estimate) -> str:
    return (
        f"mesh data {found.data} x fsdp {found.fsdp}, {found.rows_per_device} row(s) x "
        f"{found.accumulation} micro-batches, remat {found.remat}"
    )


def _verdict(found: Estimate, plan: Plan) -> str:
    if fits(found, plan.device):
        return "fits"
    # The work space of a CPU is an upper bound, the rest is exact.
    known = found.peak - found.temporary
    surely = plan.target != "cpu" or known > USABLE * plan.device.memory
    return "does not fit" if surely else "may not fit"


def _gib(count: float) -> str:
    return gib(count, 2)
