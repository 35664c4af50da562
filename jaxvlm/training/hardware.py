"""What accelerators can do, from their makers' data sheets."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      name: by which a user asks for it.
      kind: what JAX's `device_kind` contains.
      flops: bfloat16 matrix products a second, dense.
      memory: bytes that a program can have of it.
      bandwidth: bytes a second to and from its memory.
      link: bytes a second to the other devices of its machine, in one direction.
      source: where the figures stand.
    """

    name: str
    kind: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    source: str


# NVLink's figures are of both directions together; `link` is half of them. Memory is what the
# driver shows, in the makers' names in GB.
ACCELERATORS = (
    Accelerator("a100-40gb", "A100-SXM4-40GB", 312e12, 39.4 * GIB, 1.555e12, 300e9,
                "NVIDIA A100 data sheet, 2021"),
    Accelerator("a100-80gb", "A100-SXM4-80GB", 312e12, 79.2 * GIB, 2.039e12, 300e9,
                "NVIDIA A100 data sheet, 2021"),
    Accelerator("h100-80gb", "H100 80GB HBM3", 989.4e12, 79.1 * GIB, 3.35e12, 450e9,
                "NVIDIA H100 data sheet (SXM), 2023"),
    Accelerator("h200", "H200", 989.4e12, 139.8 * GIB, 4.8e12, 450e9,
                "NVIDIA H200 data sheet (SXM), 2024"),
    Accelerator("b200", "B200", 2250e12, 178.0 * GIB, 7.7e12, 900e9,
                "NVIDIA DGX B200 data sheet, 2024 (an eighth of the machine)"),
    Accelerator("l40s", "L40S", 362e12, 44.4 * GIB, 0.864e12, 32e9,
                "NVIDIA L40S data sheet, 2023 (PCIe 4)"),
)  # fmt: skip


def by_kind(kind: str) -> Accelerator | None:
    """The accelerator of JAX's `device_kind`, or None if it is not known."""
    return next((known for known in ACCELERATORS if known.kind in kind), None)
