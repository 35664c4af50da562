"""Tokens a second of greedy decoding, beside `transformers.generate`, and the share of the bound.

    python scripts/bench/generate.py [--size 100m] [--batches 1,16,64] [--output FILE.json]

Random weights and prompts of one length; every text has as many new tokens. `tokens/s` counts the
new ones over all the time, reading the prompts too; a step makes one token of every text. The bound
is what memory allows: each step reads every weight, and the keys and values of every text. On a
GPU (`--size 4b`, bfloat16) its bandwidth is the data sheet's, on a CPU (float32) that of reading a
large array in this machine's cores.

With `--ragged` texts end apart, as answers do: four times as many as the batch, each of 1 to
`--new` tokens, short ones as often as ones twice as long. `transformers.generate` takes a batch
after the other, each until its longest text ends; tokens behind a text's own end do not count.
"""

import argparse
import time

import numpy as np
import sides
import stage1_batches
from command_line import count, counts, new_parser

from jaxvlm.console import print_table
from jaxvlm.errors import UserError

SIZES = {name: size.language for name, size in stage1_batches.SIZES.items()}
SIDES = ("jaxvlm", "transformers")


def main(flags: argparse.Namespace) -> None:
    if flags.new < 2:
        raise UserError("--new 1: a step is what a second token takes; expected at least 2")
    cases = [
        {"side": side, "batch": batch, "size": flags.size, "prompt": flags.prompt,
         "new": flags.new, "ragged": flags.ragged, "repeats": flags.repeats}
        for batch in flags.batches
        for side in SIDES
    ]  # fmt: skip
    found = sides.in_turn(__file__, cases, flags.rounds)
    rows = [_row(*found[at : at + 2]) for at in range(0, len(found), 2)]
    device = next((case["device"] for case in found if "device" in case), "no device")
    columns = ("batch", *(f"{side}, tokens/s" for side in SIDES), "ratio")
    if not flags.ragged:
        columns += (*(f"{side}, ms a step" for side in SIDES), "of steps",
                    *(f"{side}, of the bound" for side in SIDES))  # fmt: skip
    new = f"1 to {flags.new}" if flags.ragged else flags.new
    print_table(f"greedy decoding, {flags.size}, {flags.prompt} + {new} tokens on {device}",
                columns, rows)  # fmt: skip
    sides.write_record(flags.output, found)


def _row(ours: dict, theirs: dict) -> tuple:
    both = ours, theirs

    def figures(form) -> list[str]:
        return [case["failed"] if "failed" in case else form(case) for case in both]

    def ratio(name: str, above: dict, below: dict) -> str:
        if any("failed" in case for case in both):
            return "-"
        ours[name] = above / below
        return f"{ours[name]:.2f}"

    rates = [case.get("tokens_per_second") for case in both]
    row = (
        ours["batch"],
        *figures(lambda case: f"{case['tokens_per_second']:,.1f}{sides.spread(case)}"),
        ratio("times", *rates),
    )
    if ours["ragged"]:
        return row
    steps = [case.get("step_seconds") for case in both]
    return (
        *row,
        *figures(lambda case: f"{1e3 * case['step_seconds']:.1f}"),
        ratio("times_step", *reversed(steps)),
        *figures(lambda case: f"{case['share_of_bound']:.0%}"),
    )


def measure(case: dict) -> dict:
    """One side at one batch, warmed up."""
    limits = _ragged(case) if case["ragged"] else np.full(case["batch"], case["new"])
    rng, shape = np.random.default_rng(0), (len(limits), case["prompt"])
    prompts = rng.integers(0, SIZES[case["size"]].vocab_size - 10, shape)
    make = _jaxvlm if case["side"] == "jaxvlm" else _transformers
    generate, facts = make(case, prompts)
    whole = sides.seconds_of(lambda: generate(limits), case["repeats"])
    facts |= {"seconds": whole, "tokens_per_second": int(limits.sum()) / whole}
    if case["ragged"]:
        return facts | {"texts": len(limits), "tokens": int(limits.sum())}
    first = sides.seconds_of(lambda: generate(np.ones_like(limits)), case["repeats"])
    step = (whole - first) / (case["new"] - 1)
    if step <= 0:
        raise UserError(
            f"{case['new']} tokens took no longer than one: the machine is too busy, or --new too "
            "small"
        )
    return facts | {
        "prompt_seconds": first,
        "step_seconds": step,
        "share_of_bound": _bytes(case, facts["dtype"]) / facts["bandwidth"] / step,
    }


def _ragged(case: dict) -> np.ndarray:
    """How many tokens each text has: their logarithms are drawn evenly."""
    drawn = np.random.default_rng(1).uniform(0, np.log(case["new"] + 1), 4 * case["batch"])
    return np.exp(drawn).astype(int)


def random_weights(config, dtype, mesh):
    """A decoder of some sizes, whole on every device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxvlm.models.decoder import decoder_weights
    from jaxvlm.models.qwen3 import Qwen3
    from jaxvlm.models.tree import pure
    from jaxvlm.paths import flatten

    shapes = flatten(pure(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        path: jnp.ones(like.shape, dtype)
        if "norm" in path
        else jax.random.normal(key, like.shape, dtype) * 0.02
        for key, (path, like) in zip(keys, shapes.items(), strict=True)
    }
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.device_put(decoder_weights(params, config.num_layers), whole)


def _jaxvlm(case: dict, prompts: np.ndarray):
    import jax
    import jax.numpy as jnp

    from jaxvlm.generation.engine import Engine, Request
    from jaxvlm.generation.sampling import Sampling
    from jaxvlm.generation.slots import Program
    from jaxvlm.models.decoder import Decoder
    from jaxvlm.training.hardware import by_kind
    from jaxvlm.training.mesh import make_mesh

    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    config = SIZES[case["size"]]
    mesh = make_mesh(-1, -1)
    weights = random_weights(config, dtype, mesh)
    # No token ends a text.
    program = Program(Decoder(config), Sampling(), mesh, -1, config.vocab_size)
    engine = Engine(program, weights, -(-case["batch"] // mesh.size))
    nothing = np.full(prompts.shape[1], -1, np.int32)
    visual = np.zeros((1, config.hidden_size), np.dtype(dtype))

    def generate(limits: np.ndarray) -> None:
        asked = [
            Request(i, i, row.astype(np.int32), nothing, visual, int(most))
            for i, (row, most) in enumerate(zip(prompts, limits, strict=True))
        ]
        assert sum(len(each.tokens) for each in engine.run(asked)) == limits.sum()

    known = by_kind(device.device_kind)
    return generate, {
        "device": device.device_kind,
        "dtype": np.dtype(dtype).name,
        "bandwidth": _bandwidth(known, device.platform),
    }


def _transformers(case: dict, prompts: np.ndarray):
    import torch
    import transformers

    from jaxvlm.training.hardware import by_kind

    gpu = torch.cuda.is_available()
    config = transformers.Qwen3Config(**SIZES[case["size"]].to_hf())
    dtype = torch.bfloat16 if gpu else torch.float32
    with torch.device("cuda" if gpu else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompts).to(model.device)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def generate(limits: np.ndarray) -> None:
        for at in range(0, len(limits), case["batch"]):
            rows = slice(at, at + case["batch"])
            new = int(limits[rows].max())
            some = {"attention_mask": mask[rows], "max_new_tokens": new, "min_new_tokens": new}
            out = model.generate(ids[rows], do_sample=False, pad_token_id=0, **some)
            assert out.shape[1] == ids.shape[1] + new
        if gpu:
            torch.cuda.synchronize()

    known = by_kind(torch.cuda.get_device_name()) if gpu else None
    return generate, {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "bandwidth": _bandwidth(known, "gpu" if gpu else "cpu"),
    }


def _bandwidth(known, platform: str) -> float:
    if known is None and platform != "cpu":
        raise UserError("the memory bandwidth of this GPU is not known (training/hardware.py)")
    return known.bandwidth if known else _cpu_bandwidth()


def _bytes(case: dict, dtype: str) -> float:
    """What a step reads: the weights, and the cache at its middle length."""
    size, number = SIZES[case["size"]], 2 if dtype == "bfloat16" else 4
    width, layers, keys = size.hidden_size, size.num_layers, size.num_kv_heads * size.head_dim
    layer = width * (2 * size.num_heads * size.head_dim + 2 * keys + 3 * size.intermediate_size)
    cache = 2 * keys * layers * case["batch"] * (case["prompt"] + case["new"] / 2)
    return number * (layers * layer + width * size.vocab_size + cache)


def _cpu_bandwidth() -> float:
    """Bytes a second of reading an array that no cache holds, with all cores."""
    import torch

    data = torch.ones(2**27)
    data.sum()
    started = time.perf_counter()
    for _ in range(5):
        data.sum()
    return 5 * data.nbytes / (time.perf_counter() - started)


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--size", choices=SIZES, default="100m", help="of Qwen3")
    flags.add_argument("--batches", type=counts, default=[1, 16, 64], help="texts at a time")
    flags.add_argument("--prompt", type=count, default=192, help="tokens of each prompt")
    flags.add_argument("--new", type=count, default=64, help="tokens of each answer")
    flags.add_argument("--ragged", action="store_true", help="texts end apart")
    flags.add_argument("--repeats", type=count, default=3, help="measurements a process")
    return flags


if __name__ == "__main__":
    sides.run(parser(), main, measure)
