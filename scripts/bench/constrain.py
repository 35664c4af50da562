"""What it costs to hold answers to the action language: seconds a step with constraint and without.

    python scripts/bench/constrain.py --tokenizer Qwen/Qwen3-4B-Instruct-2507 [--output FILE.json]

Random weights of the sizes of generate.py with the tokenizer's own vocabulary; every text is of
another scene. Both ways go on side by side in one process, some steps each in turn: what counts is
the median over such pairs of what held texts take more than the free ones beside them.
"""

import argparse
import dataclasses
import statistics
import time

import numpy as np
import sides
from command_line import count, counts, new_parser
from generate import SIZES, random_weights

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    if flags.piece > flags.new:
        raise UserError(f"--piece {flags.piece} is more than --new {flags.new}")
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
        pairs = steps(flags, tokenizer, constraints, batch)
        plain, held = (statistics.median(side) for side in zip(*pairs, strict=True))
        median, within = cost(pairs)
        cases.append({"batch": batch, "plain": plain, "held": held, "cost": median,
                      "cost_95": within, "pairs": pairs})  # fmt: skip
    device = jax.devices()[0].device_kind
    rows = [
        (
            case["batch"],
            *(f"{1e3 * case[side]:.2f} ms" for side in ("plain", "held")),
            f"{case['cost']:+.1%}",
            "{:+.1%} to {:+.1%}".format(*case["cost_95"]),
            len(case["pairs"]),
        )
        for case in cases
    ]
    print_table(f"a step, {flags.size}, {tokenizer.rows:,} tokens, on {device}",
                ("batch", "free", "held", "cost", "95%", "pairs"), rows)  # fmt: skip
    first, other = 1e3 * made[0], 1e3 * statistics.median(made[1:])
    print(f"vocabulary sorted in {ready:.2f} s; the first scene's automaton takes {first:.1f} ms, "
          f"another's {other:.1f} ms")  # fmt: skip
    sides.write_record(
        flags.output, cases, device=device, size=flags.size, vocabulary=tokenizer.rows,
        prompt=flags.prompt, new=flags.new, piece=flags.piece, rounds=flags.rounds,
        sort_seconds=ready, first_scene_seconds=made[0],
        scene_seconds=statistics.median(made[1:]),
    )  # fmt: skip


def cost(pairs: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """The median of what held steps take more than the free ones beside them, and its 95% interval.

    The interval is a bootstrap's over the pairs.
    """
    more = np.array([held / free - 1 for free, held in pairs])
    drawn = np.random.default_rng(0).integers(0, len(more), (10_000, len(more)))
    return float(np.median(more)), np.quantile(np.median(more[drawn], 1), (0.025, 0.975)).tolist()


def steps(flags: argparse.Namespace, tokenizer, constraints, batch: int) -> list[list[float]]:
    """Seconds a step of texts without constraint and of those with it, pair by pair."""
    import jax
    import jax.numpy as jnp

    from jaxvlm.generation.engine import bucket, put_constraint
    from jaxvlm.generation.sampling import Sampling
    from jaxvlm.generation.slots import Program
    from jaxvlm.models.decoder import Decoder
    from jaxvlm.training.mesh import make_mesh

    dtype = jnp.float32 if jax.devices()[0].platform == "cpu" else jnp.bfloat16
    config = dataclasses.replace(SIZES[flags.size], vocab_size=-(-tokenizer.rows // 128) * 128)
    mesh = make_mesh(-1, -1)
    weights = random_weights(config, dtype, mesh)
    # No token ends a text: behind its action one goes on with ends.
    program = Program(Decoder(config), Sampling(), mesh, -1, tokenizer.placeholder_id,
                      tuple(constraints.plain_ids.tolist()))  # fmt: skip
    rows = -(-batch // mesh.size)
    scenes = [constraints.of(f"scene{row:04d}") for row in range(rows * mesh.size)]
    room = [bucket(max(scene.tokens.shape[axis] for scene in scenes)) for axis in (0, 1)]
    prompts = np.random.default_rng(0).integers(0, tokenizer.rows, (len(scenes), flags.prompt))

    def begun(held: bool):
        """Texts behind their prompts; that the cache is empty changes nothing of a step's time."""
        state = program.empty(rows, bucket(flags.prompt + flags.new), dtype)
        state = state._replace(
            tokens=state.tokens.at[:, : flags.prompt].set(prompts),
            lengths=jnp.full_like(state.lengths, flags.prompt),
            limits=jnp.full_like(state.limits, flags.prompt + flags.new + 1),
            live=jnp.ones_like(state.live),
        )
        if held:
            state = program.hold(state, *room)
            constraint = jax.tree.map(np.array, state.held)
            for row, scene in enumerate(scenes):
                put_constraint(constraint, row, scene)
            state = state._replace(held=jax.device_put(constraint, state.live.sharding))
        return state

    found = []
    for turn in range(1 + flags.rounds):
        states = {held: begun(held) for held in (False, True)}
        for piece in range(flags.new // flags.piece):
            took = {}
            # Each goes first as often as the other.
            for held in (False, True) if (turn + piece) % 2 else (True, False):
                since = time.perf_counter()
                state = program.go_on(weights, states[held], flags.piece, rows + 1)
                states[held] = jax.block_until_ready(state)
                took[held] = (time.perf_counter() - since) / flags.piece
            # The first turn compiles.
            if turn:
                found.append([took[False], took[True]])
        assert all(bool(state.live.all()) for state in states.values())
    return found


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument(
        "--tokenizer", default="Qwen/Qwen3-4B-Instruct-2507", help="a folder, or a name"
    )
    flags.add_argument("--size", choices=SIZES, default="100m", help="of Qwen3")
    flags.add_argument("--batches", type=counts, default=[1, 16], help="texts at a time")
    for name, default, what in (
        ("prompt", 192, "tokens of each prompt"),
        ("new", 64, "tokens of each answer"),
        ("piece", 8, "steps of one way before the other's"),
        ("rounds", 10, "answers of every text"),
    ):
        flags.add_argument(f"--{name}", type=count, default=default, help=what)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
