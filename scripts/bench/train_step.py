"""Stage 1's update beside PyTorch's: the original's recipe, and the best one can write in a day.

    python scripts/bench/train_step.py [--size 4b] [--views 1,8] [--per_set 1,8] [--output FILE]

An update over the same questions of SQA3D's real lengths on every side. Ours reads cached features
of packed rows, as training does; `context first` is ours with a projector that sees what the
original's does, and `from images` has VGGT in the loop. The original's recipe: one question a row,
padded, VGGT in the loop, all logits, a projector without gradients. The best PyTorch: our rows and
features, `sdpa` with their mask, logits at labels only. Its first loss is compared with ours.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import made_up
import sides
import stage1_batches
from command_line import count, counts, new_parser, positive, some_of

from convert import parts
from jaxvlm.config import load
from jaxvlm.console import print_table
from jaxvlm.planning.choice import REMAT
from jaxvlm.training.hardware import by_kind

OURS = ("jaxvlm", "jaxvlm, context first", "jaxvlm, from images")
THEIRS = ("original", "best")
STAGE1 = Path(__file__).parents[2] / "configs" / "stage1.py"


def main(flags: argparse.Namespace) -> None:
    common = {
        "size": flags.size, "pixels": flags.pixels, "questions": flags.questions,
        "rows": flags.rows, "row_length": flags.row_length, "micro_batch": flags.micro_batch,
        "padding": flags.padding, "repeats": flags.repeats, "epochs": flags.epochs,
        "checkpointing": flags.checkpointing,
    }  # fmt: skip
    shapes = [(views, per_set) for views in flags.views for per_set in flags.per_set]
    # The original's recipe shares nothing among a set's questions.
    cases = [
        {"side": side, "views": views, "per_set": per_set, "remat": remat,
         "compile": flags.compiled and side == "best", **common}
        for views, per_set in shapes
        for side in flags.sides
        for remat in (flags.remat if side in OURS else [None])
    ]  # fmt: skip
    found = sides.in_turn(__file__, cases, flags.rounds)
    for views, per_set in shapes:
        own = [c for c in found if (c["views"], c["per_set"]) == (views, per_set)]
        _show(views, per_set, own)
    sides.write_record(flags.output, found)


def _show(views: int, per_set: int, cases: list[dict]) -> None:
    device = next((case["device"] for case in cases if "device" in case), "no device")
    known = by_kind(device)
    reference = {
        side: next((c for c in cases if c["side"] == side and "seconds" in c), None)
        for side in THEIRS
    }
    rows = []
    for case in cases:
        name = case["side"] + (f", remat {case['remat']}" if case["remat"] else "")
        if "failed" in case:
            rows.append((name, case["failed"], *["-"] * 9))
            continue
        case["samples_per_second"] = case["questions"] / case["seconds"]
        if "tflop" in case:
            case["tflops"] = case["tflop"] / case["seconds"]
            case["mfu"] = known and 1e12 * case["tflops"] / known.peak("bfloat16")
        for side, other in reference.items():
            if other is not None and case["side"] in OURS:
                case[f"times_{side}"] = other["seconds"] / case["seconds"]
        if "set_seconds" in case and reference["original"]:
            # Of every epoch's sets its share of the one time that each is seen.
            written = case["set_seconds"] * case["questions"] / per_set / case["epochs"]
            case["times_original_with_cache"] = reference["original"]["seconds"] / (
                case["seconds"] + written
            )
        off = "-"
        if case["side"] == "jaxvlm" and reference["best"]:
            case["loss_off_by"] = abs(case["loss"] / reference["best"]["loss"] - 1)
            off = f"{case['loss_off_by']:.1e}"
        rows.append((
            name,
            f"{case['seconds']:.2f}{sides.spread(case)}",
            f"{case['samples_per_second']:.2f}",
            *(_figure(case.get(n), form) for n, form in (
                ("tokens_per_second", ",.0f"), ("tflops", ".3g"), ("mfu", ".0%"),
                ("peak_gib", ".2f"), ("times_original", ".2f"),
                ("times_original_with_cache", ".2f"), ("times_best", ".2f"))),
            off,
        ))  # fmt: skip
    columns = ("", "s/update", "samples/s", "tokens/s", "TFLOP/s", "MFU", "peak GiB", "× original",
               "× with cache writing", "× best", "loss off by")  # fmt: skip
    shape = f"{views} view{'s' * (views > 1)}, {per_set} question{'s' * (per_set > 1)} a set"
    print_table(f"Stage 1, {cases[0]['size']}, {shape}, on {device}", columns, rows)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def measure(case: dict) -> dict:
    """One side."""
    if case["side"] in THEIRS:
        import torch_stage1

        return torch_stage1.measure(case)
    return _ours(case)


def _ours(case: dict) -> dict:
    import jax
    import jax.numpy as jnp

    from jaxvlm.training.mesh import batch_sharding, make_mesh
    from jaxvlm.training.optimizer import make_optimizer
    from jaxvlm.training.parameters import assign_groups, trainable
    from jaxvlm.training.state import abstract_parameters, new_state, placed_parameters
    from jaxvlm.training.step import make_steps
    from jaxvlm.training.work import Work, model_flops, trained_shares

    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    dtype = jnp.float32 if cpu else jnp.bfloat16
    whole = stage1_batches.SIZES[case["size"]]
    if case["side"] == "jaxvlm, context first":
        projector = dataclasses.replace(whole.projector, context="first")
        whole = dataclasses.replace(whole, projector=projector)
    images = case["side"] == "jaxvlm, from images"
    model = whole if images else dataclasses.replace(whole, vision=None)
    found = stage1_batches.samples(whole, case["questions"], case["views"], case["per_set"])
    batches = stage1_batches.packed(whole, found, case, jnp.dtype(dtype).name)
    if images:
        batches = [_with_images(batch, case) for batch in batches]
    config = load(str(STAGE1), [])
    mesh = make_mesh(-1, -1)
    with jax.set_mesh(mesh):
        shapes = abstract_parameters(model)
        groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
        learning = trainable(groups)
        likes = placed_parameters(model, groups, dtype, mesh)
        params = _parameters(model, likes)
        frozen = {path: leaf for path, leaf in params.items() if path not in learning}
        optimizer = make_optimizer({path: groups[path] for path in learning}, config.optimizer, 937)
        state = new_state({path: params.pop(path) for path in likes if path in learning},
                          optimizer, mesh)  # fmt: skip
        steps = make_steps(model, optimizer, dtype, case["remat"], state)
        sums, taken, losses = steps.start(state.params), [], []
        for _ in range(case["repeats"] + 1):
            began = time.perf_counter()
            for batch in batches:
                placed = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in batch.items()}
                sums = steps.accumulate(state.params, frozen, sums, placed, None)
            state, metrics, sums = steps.update(state, sums)
            losses.append(float(metrics["loss"]))
            taken.append(time.perf_counter() - began)
        stats = device.memory_stats() or {}
        peak = sides.peak_gib(None if cpu else stats["peak_bytes_in_use"])
    seconds = statistics.median(taken[1:])
    work = Work(*map(float, metrics["work"]))
    shares = trained_shares(abstract_parameters(whole), learning)
    pixels = (case["pixels"], case["pixels"])
    cached = {} if images else {"set_seconds": _seen(whole, case, dtype)}
    return cached | {
        "seconds": seconds,
        "loss": losses[0],
        "tokens_per_second": work.tokens / seconds,
        "tflop": model_flops(whole, work, pixels, shares, cached=not images) / 1e12,
        "row_fill": work.tokens / sum(batch["tokens"].size for batch in batches),
        "peak_gib": peak,
        "device": device.device_kind,
        "compile_seconds": taken[0] - seconds,
        "parameters": sum(leaf.size for leaf in state.params.values()),
    }


def _parameters(model, likes: dict) -> dict:
    import jax

    sizes = {name: getattr(model, name) for name in ("vision", "projector", "geometry", "language")}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    rules = parts.rules(sizes, {"language": "language."})
    return {
        path: jax.device_put(leaf.astype(likes[path].dtype), likes[path].sharding)
        for path, leaf in made_up.ours(rules, parts.shapes(sizes))
    }


def _with_images(batch: dict, case: dict) -> dict:
    import numpy as np

    side, (rows, sets) = case["pixels"], batch["view_counts"].shape
    kept = {k: v for k, v in batch.items() if k not in ("features", "feature_counts")}
    pixels = (rows, sets * case["views"], side, side, 3)
    return kept | {"images": np.random.default_rng(0).integers(0, 256, pixels, np.uint8)}


def _seen(whole, case: dict, dtype) -> float:
    """Seconds that VGGT takes for one image set, as a cache is filled."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxvlm.training.features import Encoder
    from jaxvlm.training.mesh import make_mesh

    sizes, mesh = {"vision": whole.vision}, make_mesh(-1, -1)
    params = {
        path: jnp.asarray(leaf, dtype)
        for path, leaf in made_up.ours(parts.rules(sizes), parts.shapes(sizes))
    }
    images = np.zeros((1, case["views"], case["pixels"], case["pixels"], 3), np.uint8)
    with jax.set_mesh(mesh):
        see = Encoder(whole, params, mesh, jnp.dtype(dtype))
        return sides.seconds_of(lambda: see(images).block_until_ready(), case["repeats"])


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    add = flags.add_argument
    add("--size", choices=stage1_batches.SIZES, default="100m", help="parameters of the model")
    add("--views", type=counts, default=[1], help="of an image set")
    add("--per_set", type=counts, default=[1], help="questions of an image set")
    add("--pixels", type=count, default=448, help="side of the images")
    add("--questions", type=count, default=192, help="of an update")
    add("--rows", type=count, default=1, help="of our micro-batches")
    add("--row_length", type=count, default=4096, help="tokens of our rows")
    add(
        "--micro_batch",
        type=count,
        default=6,
        help="of the original, in questions",
    )
    add("--padding", choices=("512", "longest"), default="512", help="of the original's rows")
    add(
        "--remat",
        type=some_of(REMAT, ","),
        default=["dots"],
        help="of ours, some of none,dots,full",
    )
    add("--sides", type=some_of((*OURS, *THEIRS), ";"), default=[*OURS[:2], *THEIRS],
        help=f"which, with ; between them: {'; '.join((*OURS, *THEIRS))} "
             "(default: all but the one from images)")  # fmt: skip
    add("--epochs", type=positive, default=3.4, help="of a run, over which a cache is written once")
    add("--repeats", type=count, default=3, help="updates measured in each process")
    add("--compiled", action=argparse.BooleanOptionalAction, default=False,
        help="compile the best PyTorch")  # fmt: skip
    add("--checkpointing", action=argparse.BooleanOptionalAction, default=False,
        help="PyTorch recomputes its layers backwards")  # fmt: skip
    return flags


if __name__ == "__main__":
    sides.run(parser(), main, measure)
