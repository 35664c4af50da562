"""The real steps of a run, compiled for devices that need not be there.

A plan starts this module in a process of its own for each setting: how many devices JAX fakes is
decided when it starts.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxvlm import entry
from jaxvlm.config import load, to_json
from jaxvlm.errors import UserError
from jaxvlm.models import cudnn
from jaxvlm.models.partition import BATCH_AXES
from jaxvlm.planning.inputs import Inputs, abstract_inputs
from jaxvlm.training.hardware import MACHINE, Accelerator, by_name
from jaxvlm.training.setup import run_steps
from jaxvlm.training.step import Steps

_CUDA_PACKAGES = ("jax_cuda12_plugin", "nvidia.cuda_nvcc")
# JAX asks it for its version.
_CUDNN_PACKAGE = "nvidia.cudnn"


class StepBytes(NamedTuple):
    """Bytes of a compiled step on one device.

    Attributes:
      arguments: what goes in.
      temporary: what is made on the way.
      new: results that do not take an argument's place.
    """

    arguments: int
    temporary: int
    new: int


def compile_steps(config, mesh: Mesh) -> dict[str, StepBytes]:
    """The bytes of `accumulate` and `update` on each device of a mesh."""
    inputs = abstract_inputs(config, mesh)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        sources = max(len(config.data.train), 1)
        steps = run_steps(config, inputs.model, inputs.optimizer, inputs.state, sources)
        sums = _sums(steps, inputs)
        arguments = (inputs.state.params, inputs.frozen, sums, inputs.batch, inputs.key)
        return {
            "accumulate": _bytes(steps.accumulate.lower(*arguments)),
            "update": _bytes(steps.update.lower(inputs.state, sums)),
        }


def _sums(steps: Steps, inputs: Inputs):
    shapes = jax.eval_shape(steps.start, inputs.state.params)
    placed = steps.start.lower(inputs.state.params).compile().output_shardings
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placed,
    )


def _bytes(lowered) -> StepBytes:
    found = lowered.compile().memory_analysis()
    return StepBytes(
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
    )


def cuda_compiles() -> bool:
    """Whether the packages are there that compile for an NVIDIA GPU without one."""
    return _installed(*_CUDA_PACKAGES)


def _installed(*names: str) -> bool:
    try:
        return all(importlib.util.find_spec(name) for name in names)
    except ModuleNotFoundError:
        return False


def in_a_child(config, mesh: tuple[int, int], target: str | None) -> dict[str, StepBytes]:
    """`compile_steps` for a mesh of fake devices.

    Args:
      config: whatever it says of the mesh.
      mesh: sizes of its axes `data` and `fsdp`.
      target: the name of an accelerator, or None for CPU devices.

    Raises:
      UserError: the compiler's, in a line.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(to_json(config), encoding="utf-8")
        command = [sys.executable, "-m", "jaxvlm.planning.compiled", "--config", str(path)]
        command += ["--mesh", *map(str, mesh)] + (["--target", target] if target else [])
        done = subprocess.run(
            command, env=_environment(mesh, target), capture_output=True, text=True, check=False
        )
    if done.returncode or not done.stdout.strip():
        said = (done.stderr.strip().splitlines() or ["its process said nothing"])[-1]
        if done.returncode < 0:
            killed = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
            said = f"the compiler was ended by {killed} (was the memory full?). {said}".strip()
        raise UserError(f"the step does not compile for {mesh[0]} x {mesh[1]} devices: {said}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: StepBytes(*sizes) for name, sizes in found.items()}


def _environment(mesh: tuple[int, int], target: str | None) -> dict[str, str]:
    # Without the launcher's: those of a Slurm job or of the GPUs that are here.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    if target:
        # A GPU that is here is another process's.
        hidden = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": ""}
        return kept | hidden | {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    count = f"--xla_force_host_platform_device_count={mesh[0] * mesh[1]}"
    return kept | {"XLA_FLAGS": count, "JAX_PLATFORMS": "cpu"}


def _mesh(sizes: tuple[int, int], target: Accelerator | None) -> Mesh:
    if target is None:
        return jax.make_mesh(sizes, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
    count = sizes[0] * sizes[1]
    machines = f"1x{-(-count // MACHINE)}x{min(count, MACHINE)}"
    topology = topologies.get_topology_desc(
        "", platform="cuda", target_config=_description(target), topology=machines
    )
    devices = np.array(topology.devices).reshape(sizes)
    return Mesh(devices, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def _description(device: Accelerator) -> str:
    """A GPU as XLA's compiler is told of it; what generations share is of Ampere and later."""
    major, minor = device.capability
    shared = {8: (167_936, 166_912)}.get(major, (233_472, 232_448))
    facts = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": shared[0],
        "shared_memory_per_block_optin": shared[1],
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "core_count": device.cores,
        "fpus_per_core": 64 if major == 8 else 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(device.bandwidth),
        "l2_cache_size": 40 * 2**20,
        "clock_rate_ghz": 1.4,
        "device_memory_size": device.memory,
    }
    lines = "\n".join(f"{name}: {value}" for name, value in facts.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f"gpu_device_info {{\n{lines}\n{capability}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
        f'device_description_str: "{device.kind}"\n'
    )


def main(flags: argparse.Namespace) -> None:
    """Prints the bytes as a line of JSON."""
    target = by_name(flags.target) if flags.target else None
    if target is not None and _installed(_CUDNN_PACKAGE):
        cudnn.compile_for_absent_gpus()
    found = compile_steps(load(str(flags.config)), _mesh(tuple(flags.mesh), target))
    print(json.dumps(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.planning.compiled", description=__doc__)
    flags.add_argument("--config", type=Path, required=True)
    flags.add_argument("--mesh", type=int, nargs=2, required=True, metavar=("DATA", "FSDP"))
    flags.add_argument("--target", help="an accelerator to compile for")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
