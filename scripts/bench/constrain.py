"""What it costs to hold answers to the action language: seconds a step with constraint and without.

    python scripts/bench/constrain.py --tokenizer Qwen/Qwen3-4B-Instruct-2507 [--output FILE.json]

Random weights of the sizes of generate.py with the tokenizer's own vocabulary. Every text has as
many new tokens, of another scene each; both ways run in one process, in turn, and medians count.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from generate import SIZES, random_weights

from jaxvlm import entry
from jaxvlm.console import print_table


def main(flags: argparse.Namespace) -> None:
    import jax

    from jaxvlm.data.actions.constraint import ActionConstraints
    from jaxvlm.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(flags.tokenizer)
    begun = time.perf_counter()
    constraints = ActionConstraints(tokenizer)
    ready = time.perf_counter() - begun
    made = []
    for number in range(64):
        begun = time.perf_counter()
        constraints.of(f"scene{number:04d}")
        made.append(time.perf_counter() - begun)
    cases = []
    for batch in flags.batches:
        plain, held = steps(flags, tokenizer, constraints, batch)
        cases.append({"batch": batch, "plain": plain, "held": held, "cost": held / plain - 1})
    device = jax.devices()[0].device_kind
    rows = [
        (c["batch"], f"{1e3 * c['plain']:.2f} ms", f"{1e3 * c['held']:.2f} ms", f"{c['cost']:+.1%}")
        for c in cases
    ]
    print_table(f"a step, {flags.size}, {tokenizer.rows:,} tokens, on {device}",
                ("batch", "free", "held", "cost"), rows)  # fmt: skip
    first, other = 1e3 * made[0], 1e3 * statistics.median(made[1:])
    print(f"vocabulary sorted in {ready:.2f} s; the first scene's automaton takes {first:.1f} ms, "
          f"another's {other:.1f} ms")  # fmt: skip
    if flags.output:
        record = {
            "machine": platform.platform(), "device": device, "size": flags.size,
            "vocabulary": tokenizer.rows, "prompt": flags.prompt, "new": flags.new,
            "rounds": flags.rounds, "cases": cases, "sort_seconds": ready,
            "first_scene_seconds": made[0], "scene_seconds": statistics.median(made[1:]),
            "versions": {name: version(name) for name in ("jax", "transformers")},
        }  # fmt: skip
        flags.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def steps(flags: argparse.Namespace, tokenizer, constraints, batch: int) -> tuple[float, float]:
    """Median seconds of a step without constraint and with it."""
    import jax
    import jax.numpy as jnp

    from jaxvlm.generation.engine import Engine, Request
    from jaxvlm.generation.sampling import Sampling
    from jaxvlm.generation.slots import Program
    from jaxvlm.models.decoder import Decoder
    from jaxvlm.training.mesh import make_mesh

    dtype = jnp.float32 if jax.devices()[0].platform == "cpu" else jnp.bfloat16
    rows = -(-tokenizer.rows // 128) * 128
    config = dataclasses.replace(SIZES[flags.size], vocab_size=rows)
    mesh = make_mesh(-1, -1)
    weights = random_weights(config, dtype, mesh)
    # No token ends a text: behind its action one goes on with ends.
    program = Program(Decoder(config), Sampling(), mesh, -1, tokenizer.placeholder_id,
                      tuple(constraints.plain_ids.tolist()))  # fmt: skip
    engines = {held: Engine(program, weights, -(-batch // mesh.size)) for held in (False, True)}
    rng, nothing = np.random.default_rng(0), np.full(flags.prompt, -1, np.int32)
    texts = rng.integers(0, tokenizer.placeholder_id, (batch, flags.prompt)).astype(np.int32)
    visual = np.zeros((1, config.hidden_size), np.dtype(dtype))

    def seconds(held: bool, new: int) -> float:
        asked = [
            Request(i, i, text, nothing, visual, new,
                    constraints.of(f"scene{i:04d}") if held else None)
            for i, text in enumerate(texts)
        ]  # fmt: skip
        begun = time.perf_counter()
        assert sum(len(each.tokens) for each in engines[held].run(asked)) == new * batch
        return time.perf_counter() - begun

    for held in (False, True):
        for new in (1, flags.new):
            seconds(held, new)
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(flags.rounds):
        for held in found:
            found[held].append((seconds(held, flags.new) - seconds(held, 1)) / (flags.new - 1))
    return tuple(statistics.median(found[held]) for held in (False, True))


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        "constrain.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--tokenizer", default="Qwen/Qwen3-4B-Instruct-2507")
    flags.add_argument("--size", choices=SIZES, default="100m")
    flags.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")],
                       default=[1, 16])  # fmt: skip
    flags.add_argument("--prompt", type=int, default=192, help="tokens of each prompt")
    flags.add_argument("--new", type=int, default=64, help="tokens of each answer")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--output", type=Path, help="write the record as JSON")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
