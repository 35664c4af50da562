"""The train step at full size with random weights: seconds, tokens a second, peak memory.

    python scripts/bench/step.py [--updates 20] [--output FILE.json] [--config.FIELD=VALUE ...]

`configs/stage1.py` with made-up rows, full of tokens: 1 and 8 views, from cached features and with
VGGT in the loop, for each rematerialisation policy; each in a process of its own, for peak memory
is a process's. Then the loss of one batch in bfloat16 beside float32. Where a combination does not
fit the device, the table says so. `--config.…` makes it small enough for a CPU.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from jaxvlm import entry
from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.console import print_table

STAGE1 = Path(__file__).parents[2] / "configs" / "stage1.py"
RANDOM = tuple(f"model.{part}.weights=None" for part in ("vision", "language"))
POLICIES = ("full", "dots", "none")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def main(flags: argparse.Namespace) -> None:
    if flags.child:
        print(json.dumps(measure(flags, **json.loads(flags.child))))
        return
    cases = [
        {"views": views, "source": source, "remat": remat, "precision": "bfloat16"}
        for views in (1, 8)
        for source in ("features", "images")
        for remat in POLICIES
    ]
    found = [case | child(flags, case) for case in cases]
    columns = ("views", "from", "remat", "s/update", "tokens/s", "peak GiB", "compiled in s")
    figures = ("seconds", "tokens_per_second", "peak_gib", "compile")
    rows = [
        (case["views"], case["source"], case["remat"], *(shown(case.get(f)) for f in figures))
        for case in found
    ]
    print_table(f"train step on {found[0].get('device', 'no device')}", columns, rows)
    losses = {
        precision: child(flags, cases[0] | {"precision": precision, "updates": 0}).get("loss")
        for precision in ("bfloat16", "float32")
    }
    print(f"loss of one batch: {losses}")
    if flags.output:
        record = {"cases": found, "losses": losses, "jax": version("jax"),
                  "overrides": flags.overrides, "updates": flags.updates}  # fmt: skip
        flags.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def child(flags: argparse.Namespace, case: dict) -> dict:
    """Measures one case in a process of its own; nothing but `failed` where it does not fit."""
    overrides = [f"--config.{override}" for override in flags.overrides]
    command = [sys.executable, __file__, "--child", json.dumps(case), *overrides]
    done = subprocess.run(
        [*command, "--updates", str(flags.updates)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    full = OUT_OF_MEMORY in done.stderr
    print(f"{case}: {'does not fit' if full else done.stderr[-500:]}", file=sys.stderr)
    return {"failed": "out of memory" if full else "error"}


def measure(flags, views: int, source: str, remat: str, precision: str, updates=None) -> dict:
    """Seconds an update, and what goes with them."""
    import jax
    import jax.numpy as jnp

    from jaxvlm.models.vlm import vlm_config
    from jaxvlm.training.loss import batch_loss
    from jaxvlm.training.mesh import batch_sharding, make_mesh
    from jaxvlm.training.optimizer import make_optimizer
    from jaxvlm.training.parameters import assign_groups, trainable
    from jaxvlm.training.setup import compute_dtype
    from jaxvlm.training.state import abstract_parameters, initial_parameters, new_state
    from jaxvlm.training.step import make_steps

    updates = flags.updates if updates is None else updates
    own = [f"data.num_views={views}", f"train.remat={remat}", f"precision={precision}"]
    config = load(str(STAGE1), [*RANDOM, *own, *flags.overrides])
    check(config)
    model = vlm_config(config.model)
    if source == "features":
        model = dataclasses.replace(model, vision=None)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    with (
        jax.set_mesh(mesh),
        jax.default_matmul_precision("highest" if precision == "float32" else "default"),
    ):
        shapes, dtype = abstract_parameters(model), compute_dtype(config)
        groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
        params = initial_parameters(model, groups, set(shapes), dtype, 0, mesh)
        learning = trainable(groups)
        frozen = {p: v for p, v in params.items() if p not in learning}
        params = {p: v for p, v in params.items() if p in learning}
        arrays = rows(config, model, config.train.rows_per_device * jax.device_count(), source)
        batch = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in arrays.items()}
        if not updates:
            from jaxvlm.models.tree import load as load_model
            from jaxvlm.models.vlm import abstract_vlm
            from jaxvlm.paths import unflatten

            def loss(params, batch):
                leaves = {p: v.astype(dtype) for p, v in params.items()}
                tree = unflatten({**frozen, **leaves})
                total, tally = batch_loss(
                    load_model(abstract_vlm(model), tree), batch, "none", None
                )
                return total / tally.labels.sum()

            return {"loss": float(jax.jit(loss)(params, batch))}
        optimizer = make_optimizer({p: groups[p] for p in params}, config.optimizer, 937)
        state = new_state(params, optimizer, mesh)
        steps = make_steps(model, optimizer, dtype, remat, state)
        sums, key, taken = steps.start(state.params), jax.random.key(0), []
        for _ in range(updates + 1):
            began = time.perf_counter()
            for _ in range(config.train.accumulation):
                sums = steps.accumulate(state.params, frozen, sums, batch, key)
            state, metrics, sums = steps.update(state, sums)
            jax.block_until_ready((metrics, jnp.zeros(())))
            taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken[1:])
    tokens = arrays["tokens"].size * config.train.accumulation
    memory = jax.local_devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use")
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": peak and peak / 2**30,
        "compile": taken[0] - seconds,
        "parameters": sum(v.size for v in state.params.values()),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def rows(config, model, count: int, source: str) -> dict:
    """Rows full of samples of equal length, one label in eight tokens behind the visual ones."""
    import numpy as np

    from jaxvlm.data.geometry import FEATURES
    from jaxvlm.data.training_set import visual_layout

    data, rng = config.data, np.random.default_rng(0)
    visual = visual_layout(config).index(data.num_views, True)
    per_set, sets, length = len(visual), data.row_sets, data.row_length
    shape = (count, length)
    samples = max(length // (per_set + 48), 1)
    size = length // samples
    segments = np.minimum(np.arange(length) // size + 1, samples)
    index = np.full(length, -1)
    for sample in range(samples):
        start = sample * size + 16
        index[start : start + per_set] = sample % sets * per_set + np.arange(per_set)
    labels = (count, data.row_labels)
    vocabulary = config.model.language.vocab_size
    found = {
        "tokens": rng.integers(0, vocabulary, shape),
        "positions": np.broadcast_to(np.arange(length) % size, shape),
        "segment_ids": np.broadcast_to(segments, shape),
        "visual_index": np.broadcast_to(index, shape),
        "label_positions": rng.integers(0, length, labels),
        "labels": rng.integers(0, vocabulary, labels),
        "view_counts": np.full((count, sets), data.num_views),
    }
    found = {name: np.ascontiguousarray(value, np.int32) for name, value in found.items()}
    found["label_sources"] = np.zeros(labels, np.int32)
    found["label_weights"] = np.ones(labels, np.float32)
    found["geometry"] = rng.normal(size=(count, sets, data.num_views, FEATURES)).astype(np.float32)
    side = data.image_size
    if source == "images":
        pixels = (count, sets, data.num_views, side, side, 3)
        return found | {"images": rng.integers(0, 256, pixels, np.uint8)}
    patch, width = config.model.vision.patch_size, model.projector.in_dim
    tokens = data.num_views * ((side // patch) ** 2 + 5)
    features = rng.normal(size=(count, sets, tokens, width)).astype("bfloat16")
    return found | {
        "features": features,
        "feature_counts": np.full((count, sets), tokens, np.int32),
    }


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser("bench.step", description=__doc__)
    flags.add_argument("--updates", type=int, default=20)
    flags.add_argument("--output", type=Path)
    flags.add_argument("--child", help=argparse.SUPPRESS)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
