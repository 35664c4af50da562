"""VGGT's aggregator beside PyTorch's, with the same weights and images.

    python scripts/bench/vggt.py [--size 1b] [--views 1,2,4,8,10] [--pixels 448,518]

bfloat16 on a GPU, float32 on a CPU. PyTorch runs as VGGT's README says (autocast, all layers kept),
and compiled with weights in bfloat16; ours keeps the last layer. The outputs are compared too.
"""

import argparse

import made_up
import numpy as np
import sides
from command_line import count, counts, new_parser

from convert import vggt as names
from jaxvlm.console import print_table
from jaxvlm.models.vggt.config import VGGTConfig

SIZES = {
    "1b": VGGTConfig(),
    "small": VGGTConfig(embed_dim=256, depth=4, num_heads=4, vit_depth=4, vit_heads=4),
}
# Of the outputs, as many values are compared.
_COMPARED = 256


def main(flags: argparse.Namespace) -> None:
    kinds = ("jaxvlm", "torch", *(["torch, compiled"] if flags.compiled else []))
    cases = [
        {"side": side, "views": views, "pixels": pixels, "size": flags.size,
         "repeats": flags.repeats}
        for pixels in flags.pixels
        for views in flags.views
        for side in kinds
    ]  # fmt: skip
    found = sides.in_turn(__file__, cases, flags.rounds)
    rows = []
    for pixels in flags.pixels:
        for views in flags.views:
            each = {
                case["side"]: case
                for case in found
                if (case["views"], case["pixels"]) == (views, pixels)
            }
            rows.append(_row(views, pixels, each, kinds))
    device = next((case["device"] for case in found if "device" in case), "no device")
    columns = ("views", "pixels", *(f"{kind}, ms" for kind in kinds), "TFLOP/s",
               *(f"times as fast as {kind}" for kind in kinds[1:]), "memory / torch's",
               "outputs off by")  # fmt: skip
    print_table(f"VGGT's aggregator, {flags.size}, on {device}", columns, rows)
    for case in found:
        case.pop("sample", None)
    sides.write_record(flags.output, found)


def _row(views: int, pixels: int, each: dict[str, dict], kinds: tuple[str, ...]) -> tuple:
    mine = each["jaxvlm"]
    if "failed" in mine:
        return (views, pixels, *["-"] * (2 * len(kinds) + 2))
    times = [_time(each[kind]) for kind in kinds]
    ratios = [
        f"{each[kind]['seconds'] / mine['seconds']:.2f}" if "seconds" in each[kind] else "-"
        for kind in kinds[1:]
    ]
    config = SIZES[mine["size"]]
    mine["tflops"] = sum(config.flops(views, pixels, pixels)) / mine["seconds"] / 1e12
    theirs, memory = each["torch"], "-"
    if "sample" in theirs:
        ours, other = np.array(mine["sample"]), np.array(theirs["sample"])
        mine["off_by"] = float(np.abs(ours - other).max() / np.abs(other).max())
        memory = f"{mine['peak_gib'] / theirs['peak_gib']:.2f}"
    off = f"{mine['off_by']:.1e}" if "off_by" in mine else "-"
    return (views, pixels, *times, f"{mine['tflops']:.3g}", *ratios, memory, off)


def _time(case: dict) -> str:
    if "failed" in case:
        return "-"
    return f"{1000 * case['seconds']:,.1f}{sides.spread(case)}"


def measure(case: dict) -> dict:
    """One side, warmed up."""
    config, shape = SIZES[case["size"]], (1, case["views"], case["pixels"], case["pixels"], 3)
    side = _jaxvlm if case["side"] == "jaxvlm" else _torch
    return side(config, shape, case)


def _images(shape: tuple[int, ...]):
    return np.random.default_rng(0).random(shape, np.float32)


def _jaxvlm(config: VGGTConfig, shape: tuple[int, ...], case: dict) -> dict:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxvlm.models.tree import load, pure
    from jaxvlm.models.vggt.model import VGGT
    from jaxvlm.paths import unflatten

    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    dtype = jnp.float32 if cpu else jnp.bfloat16
    abstract = nnx.eval_shape(lambda: VGGT(config, rngs=nnx.Rngs(0)))
    params = {
        path: jax.device_put(leaf.astype(dtype), device)
        for path, leaf in made_up.ours(names.rules(config), pure(abstract))
    }
    model = load(abstract, unflatten(params))
    del params
    if cpu:
        # As a feature cache is filled there.
        model.aggregator.cut_layers()
    images = jax.device_put(_images(shape), device)
    see = jax.jit(lambda model, images: model.aggregator(images))
    seconds = sides.seconds_of(lambda: see(model, images).block_until_ready(), case["repeats"])
    stats = device.memory_stats() or {}
    return {
        "seconds": seconds,
        "peak_gib": sides.peak_gib(None if cpu else stats["peak_bytes_in_use"]),
        "device": device.device_kind,
        "dtype": jnp.dtype(dtype).name,
        "sample": _sample(see(model, images).astype(jnp.float32).reshape(-1)),
    }


def _torch(config: VGGTConfig, shape: tuple[int, ...], case: dict) -> dict:
    import torch
    from torch_models import Aggregator

    gpu = torch.cuda.is_available()
    model = torch.nn.ModuleDict({"aggregator": Aggregator(config)}).eval()
    made_up.fill(model)
    aggregator = model["aggregator"].to("cuda" if gpu else "cpu")
    compiled = case["side"] != "torch"
    images = torch.from_numpy(_images(shape)).permute(0, 1, 4, 2, 3).contiguous()
    images = images.to("cuda" if gpu else "cpu")
    if compiled:
        if gpu:
            aggregator, images = aggregator.bfloat16(), images.bfloat16()
        aggregator = torch.compile(aggregator)

    @torch.no_grad()
    def see():
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu and not compiled):
            found = aggregator(images)
        if gpu:
            torch.cuda.synchronize()
        return found[-1]

    seconds = sides.seconds_of(see, case["repeats"])
    return {
        "seconds": seconds,
        "peak_gib": sides.peak_gib(torch.cuda.max_memory_allocated() if gpu else None),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "dtype": "bfloat16" if gpu else "float32",
        "sample": _sample(see().float().reshape(-1)),
    }


def _sample(values) -> list[float]:
    return [float(value) for value in values[:: max(len(values) // _COMPARED, 1)]]


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--size", choices=SIZES, default="1b", help="of VGGT")
    flags.add_argument("--views", type=counts, default=[1, 2, 4, 8, 10], help="how many")
    flags.add_argument("--pixels", type=counts, default=[448, 518], help="of the images")
    flags.add_argument("--repeats", type=count, default=5, help="measurements a process")
    flags.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, default=True,
        help="also PyTorch compiled (on a CPU it needs a C++ compiler)",
    )  # fmt: skip
    return flags


if __name__ == "__main__":
    sides.run(parser(), main, measure)
