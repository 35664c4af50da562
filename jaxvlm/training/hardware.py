"""What accelerators can do, from their makers' data sheets."""

import dataclasses
import re

from jaxvlm.errors import UserError

GIB = 2**30
# Devices of one machine.
MACHINE = 8


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      name: by which a user asks for it.
      kind: what JAX's `device_kind` contains, as whole words.
      flops: operations of bfloat16 matrix products a second, dense.
      memory: bytes that a program can have of it.
      bandwidth: bytes a second to and from its memory.
      link: bytes a second to the other devices of its machine, in one direction.
      network: bytes a second to other machines, in one direction.
      capability: CUDA's compute capability.
      cores: streaming multiprocessors.
      source: where the figures stand.
    """

    name: str
    kind: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    network: float
    capability: tuple[int, int]
    cores: int
    source: str

    def peak(self, precision: str) -> float:
        """Operations a second; those of float32 run as TF32, half as many."""
        return self.flops / (2 if precision == "float32" else 1)


def gib(count: float, digits: int = 1) -> str:
    """Bytes, as people read them; few ones in MiB."""
    if 0 < count < GIB / 10:
        return f"{count / 2**20:,.{digits}f} MiB"
    return f"{count / GIB:,.{digits}f} GiB"


# NVLink's figures are of both directions together; `link` is half of them. `network` is that of the
# makers' own machines, one adapter a GPU. Memory is what the driver reports.
ACCELERATORS = (
    Accelerator("a100-40gb", "A100-SXM4-40GB", 312e12, 42_331_013_120, 1.555e12, 300e9, 25e9,
                (8, 0), 108, "NVIDIA A100 data sheet, 2021; DGX A100: 200 Gb/s a GPU"),
    Accelerator("a100-80gb", "A100-SXM4-80GB", 312e12, 85_051_047_936, 2.039e12, 300e9, 25e9,
                (8, 0), 108, "NVIDIA A100 data sheet, 2021; DGX A100: 200 Gb/s a GPU"),
    Accelerator("h100-80gb", "H100 80GB HBM3", 989.4e12, 84_942_979_072, 3.352e12, 450e9, 50e9,
                (9, 0), 132, "NVIDIA H100 data sheet (SXM), 2023; DGX H100: 400 Gb/s a GPU"),
    Accelerator("h200", "H200", 989.4e12, 150_110_011_392, 4.8e12, 450e9, 50e9,
                (9, 0), 132, "NVIDIA H200 data sheet (SXM), 2024; DGX H200: 400 Gb/s a GPU"),
    Accelerator("b200", "B200", 2250e12, 191_514_411_008, 7.672e12, 900e9, 50e9,
                (10, 0), 148, "NVIDIA DGX B200 data sheet, 2024 (an eighth); 400 Gb/s a GPU"),
)  # fmt: skip


def by_name(name: str) -> Accelerator:
    """The accelerator that a user asks for.

    Raises:
      UserError: there is none of this name; it lists the known.
    """
    for known in ACCELERATORS:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in ACCELERATORS)
    raise UserError(f"unknown device {name!r}: known are {names}")


def by_kind(kind: str) -> Accelerator | None:
    """The accelerator of JAX's `device_kind`, or None if it is not known."""
    if "MIG" in kind:
        # A part of one.
        return None
    whole = (known for known in ACCELERATORS if re.search(rf"\b{known.kind}\b", kind))
    return next(whole, None)
