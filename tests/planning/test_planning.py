"""A plan beside what a run really has, and what it says to those who ask for the impossible."""

import json
import os

import jax
import numpy as np
import pytest
import tiny

from jaxvlm import entry, plan, train
from jaxvlm.config import default, load
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError, memory_is_short
from jaxvlm.planning import at_start, report
from jaxvlm.planning.choice import best_rows, meshes, recommend, smaller
from jaxvlm.planning.compiled import StepBytes, compile_steps, in_a_child
from jaxvlm.planning.estimate import estimate, fits
from jaxvlm.planning.inputs import abstract_inputs, batch_shapes
from jaxvlm.planning.state_bytes import state_bytes, traffic
from jaxvlm.training import loop
from jaxvlm.training.hardware import GIB, by_name
from jaxvlm.training.mesh import mesh_sizes
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.state import abstract_parameters, new_state
from jaxvlm.training.step import make_steps

H100 = by_name("h100-80gb")


@pytest.mark.parametrize("packed", [True, False])
def test_the_batch_of_a_plan_is_that_of_a_run(records, packed):
    config = tiny.config_for(records, data__pack=packed)
    batch = training_rows(config, 3).batch(0, 3)
    batch.pop("lost")
    shapes = batch_shapes(config, 3)
    assert shapes.keys() == batch.keys()
    for name, like in shapes.items():
        assert like.dtype == batch[name].dtype, name
        if packed or name not in ("tokens", "positions", "segment_ids", "visual_index"):
            assert like.shape == batch[name].shape, name
        else:
            # Of the longest sample that may be.
            assert like.shape >= batch[name].shape, name


def test_the_arguments_of_a_plan_are_the_arrays_of_a_run(toy):
    """To the byte, for the compiled steps and for the table from shapes."""
    trained = {path: toy.groups[path] for path in toy.trained}
    optimizer = make_optimizer(trained, toy.config.optimizer, toy.config.train.max_steps)
    state = new_state(dict(toy.trained), optimizer, toy.mesh)
    steps = make_steps(toy.model, optimizer, jax.numpy.float32, toy.config.train.remat, state)
    sums = steps.start(state.params)
    batch = toy.batch(count=toy.config.train.rows_per_device)
    batch.pop("lost")

    def held(*trees):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

    found = compile_steps(toy.config, toy.mesh)
    # Without the key of dropout, which nothing draws from here.
    assert found["accumulate"].arguments == held(state.params, toy.frozen, sums, batch)
    assert found["update"].arguments == held(state, sums)
    table = state_bytes(toy.config, 1)
    counters = held(state) - held(state.params) - table.optimizer
    assert (table.parameters, table.frozen) == (held(state.params), held(toy.frozen))
    assert table.gradients == held(sums.gradients) and 0 < counters <= 8 * len(toy.trained) + 4


@pytest.mark.slow
def test_shares_of_eight_devices_are_those_of_the_compiler(toy):
    """Twelve bytes a parameter that learns and four of its gradient, an eighth or whole."""
    config = toy.config.copy_and_resolve_references()
    # Large enough to be split.
    config.model.language.intermediate_size = 4096
    found = in_a_child(config, (1, 8), None)
    table = state_bytes(config, 8)
    batch = sum(
        int(np.prod(like.shape)) * like.dtype.itemsize
        for like in batch_shapes(config, config.train.rows_per_device).values()
    )
    sums = 4 * (1 + 3 + 7)
    expected = table.parameters + table.frozen + table.gradients + batch + sums
    assert found["accumulate"].arguments == pytest.approx(expected, abs=64)
    counters = found["update"].arguments - table.parameters - table.gradients - table.optimizer
    assert 0 < counters < 8 * len(toy.trained) + 128
    assert table.parameters < state_bytes(config, 1).parameters


def test_full_size_takes_sixteen_bytes_a_parameter():
    """FP32 masters, gradients and two moments: 5.26 billion parameters."""
    config = default()
    one, eight = (state_bytes(config, fsdp) for fsdp in (1, 8))
    learnt = 1_227_684_352 + 6_653_440 + 4_022_468_096
    assert one.parameters + one.gradients + one.optimizer == 16 * learnt
    assert one.frozen == 2 * 909_112_320
    assert eight.parameters / one.parameters == pytest.approx(1 / 8, rel=1e-3)


def test_traffic_is_that_of_rings():
    config = default()
    shapes = abstract_parameters(abstract_inputs(config, _mesh()).model)
    learnt = sum(leaf.size for path, leaf in shapes.items() if not path.startswith("vision/"))
    moved = traffic(config, 4, 8)
    # In bfloat16: forwards, backwards, and gradients; seven eighths come from others.
    assert moved.fsdp == pytest.approx(3 * 2 * learnt * 7 / 8, rel=1e-3)
    assert moved.data == pytest.approx(2 * 2 * learnt / 8 * 3 / 4, rel=2e-3)
    assert traffic(config, 1, 1) == (0, 0)


def _mesh():
    return jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def needing(gib_a_row):
    """A compiler whose steps take so much for each row, and twice without rematerialisation."""

    def compiled(config, mesh):
        times = {"none": 2.0, "dots": 1.5, "full": 1.0}[config.train.remat]
        used = int(config.train.rows_per_device * gib_a_row * times * GIB)
        return {"accumulate": StepBytes(0, used, 0), "update": StepBytes(0, 0, 0)}

    return compiled


def stage1(**changes):
    config = default().copy_and_resolve_references()
    config.train.accumulation = 8
    for name, value in changes.items():
        node, _, field = name.rpartition("__")
        (config[node] if node else config)[field] = value
    return config


def test_the_fastest_setting_that_fits_is_recommended():
    """An eighth of the state takes 11.5 GiB of 69.6 that are usable."""
    setting, found = recommend(stage1(), 8, H100, needing(10))
    assert (setting.train.remat, found.rows_per_device, found.accumulation) == ("none", 2, 4)
    setting, found = recommend(stage1(), 8, H100, needing(50))
    assert (setting.train.remat, found.rows_per_device) == ("full", 1)
    assert fits(found, H100) and recommend(stage1(), 8, H100, needing(90)) is None


def test_moments_go_to_the_host_where_nothing_else_helps():
    setting, found = recommend(stage1(), 1, H100, needing(5))
    assert setting.optimizer.offload == "host" and found.host > 40 * GIB


def test_rows_of_an_update_stay_as_many():
    _, found = best_rows(stage1(train__accumulation=6), (1, 8), H100, needing(8))
    assert (found.rows_per_device, found.accumulation) == (2, 3)


@pytest.mark.parametrize(
    ("devices", "mesh"),
    # One machine holds the parameters; further ones copy them.
    [
        (1, (1, 1)),
        (4, (1, 4)),
        (8, (1, 8)),
        (64, (8, 8)),
        (1024, (128, 8)),
        (12, (2, 6)),
        (7, (1, 7)),
    ],
)
def test_parameters_are_split_over_one_machine(devices, mesh):
    assert mesh_sizes(-1, -1, devices) == mesh
    assert meshes(default(), devices)[0] == mesh


def test_more_shares_hold_less_each():
    found = meshes(default(), 256)
    assert [fsdp for _, fsdp in found] == [8, 16, 32, 64, 128, 256]
    # 1,024 divide few axes: what is not split would lie whole on every device.
    assert (1, 1024) not in meshes(default(), 1024)


def test_parameters_are_split_further_where_they_do_not_fit():
    config = stage1()
    config.model.language.num_layers = 360
    setting, found = recommend(config, 64, by_name("a100-40gb"), needing(2))
    assert found.fsdp > 8 and setting.optimizer.offload == "device"


def test_a_plan_with_a_given_axis_leaves_other_numbers_out(monkeypatch):
    monkeypatch.setattr(report, "in_a_child", lambda config, mesh, _: needing(1)(config, mesh))
    found = report.make_plan(stage1(mesh__fsdp=8), [8], H100, False)
    assert [each.devices for each in found.others] == [16, 64, 256, 1024]
    assert {each.fsdp for each in found.others} == {8}


def test_a_plan_of_auto_is_that_of_the_run(monkeypatch):
    """On one device the first remat that fits, on more another."""

    def compiled(config, mesh, _):
        return needing({"none": 60, "dots": 9, "full": 1}[config.train.remat])(config, mesh)

    monkeypatch.setattr(report, "in_a_child", compiled)
    found = report.make_plan(stage1(train__remat="auto"), [8], H100, False)
    assert [each.remat for each in found.asked] == ["dots"]
    assert {each.devices: each.remat for each in found.others}[1] == "full"


def test_a_mesh_that_cannot_be_is_refused():
    config = stage1(mesh__data=3, mesh__fsdp=-1)
    with pytest.raises(UserError, match=r"mesh.data=3 x mesh.fsdp=-1 does not make 8 devices"):
        meshes(config, 8)


def test_what_takes_less_is_named_from_the_mildest_on():
    config = stage1(train__rows_per_device=4, train__remat="none", data__row_sets=2)
    flags = list(smaller(config))
    assert flags[0] == "--config.train.rows_per_device=2 --config.train.accumulation=16"
    assert flags[1:4] == ["--config.train.remat=dots", "--config.train.remat=full",
                          "--config.optimizer.offload=host"]  # fmt: skip
    # Each is a flag that exists.
    for flag in " ".join(flags).split():
        if flag.startswith("--config.") and "…" not in flag:
            load_with = flag.removeprefix("--config.")
            load(str(tiny.__file__), [load_with, "data.row_length=4096"])


def test_rows_that_do_not_compile_are_not_taken(records, monkeypatch):
    def compiled(config, mesh, _):
        if config.train.rows_per_device > 2:
            raise UserError("the compiler was ended")
        return needing(0.001)(config, mesh)

    monkeypatch.setattr(at_start, "in_a_child", compiled)
    config = load(str(tiny.__file__), ["train.rows_per_device=auto", "train.accumulation=8"])
    assert at_start.settled(config).train.rows_per_device == 2


def test_an_error_of_memory_says_what_takes_less():
    less = at_start.takes_less(stage1())
    assert less.startswith("What takes less: --config.optimizer.offload=host; then")
    said = r"^out of memory: RESOURCE_EXHAUSTED: .*\. What takes less: "
    with pytest.raises(UserError, match=said), memory_is_short(less):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    # The runtime calls a full disk so, too.
    for other in ("RESOURCE_EXHAUSTED: x.pb; No space left on device", "INTERNAL: x"):
        with pytest.raises(jax.errors.JaxRuntimeError), memory_is_short(less):
            raise jax.errors.JaxRuntimeError(other)


@pytest.mark.parametrize(("gib", "rows"), [(0.001, 8), (3, 2)])
def test_auto_takes_the_rows_that_fit(records, monkeypatch, capsys, gib, rows):
    monkeypatch.setattr(at_start, "in_a_child", lambda config, mesh, _: needing(gib)(config, mesh))
    monkeypatch.setattr(
        at_start.psutil, "virtual_memory", lambda: type("M", (), {"available": 8 * GIB})
    )
    config = load(str(tiny.__file__), ["train.rows_per_device=auto", "train.accumulation=8"])
    found = at_start.settled(config).train
    assert (found.rows_per_device, found.accumulation) == (rows, 8 // rows)
    assert f"train.rows_per_device=auto: {rows} row(s) x {8 // rows}" in capsys.readouterr().out


def test_auto_that_fits_nowhere_says_what_takes_less(monkeypatch):
    monkeypatch.setattr(at_start, "in_a_child", lambda config, mesh, _: needing(9999)(config, mesh))
    config = load(str(tiny.__file__), ["train.rows_per_device=auto"])
    with pytest.raises(UserError, match=r"not one row a device fits .* What takes less: --config"):
        at_start.settled(config)


@pytest.mark.parametrize(("fits", "rows"), [("none", 4), ("dots", 4), ("full", 2)])
def test_auto_recomputes_no_more_than_it_must(records, monkeypatch, capsys, fits, rows):
    """Of several that fit it is the fastest, whose rows are then chosen."""
    order = ("none", "dots", "full")

    def compiled(config, mesh, target):
        enough = order.index(config.train.remat) >= order.index(fits)
        small = enough and config.train.rows_per_device <= rows
        return needing(0.001 if small else 9999)(config, mesh)

    monkeypatch.setattr(at_start, "in_a_child", compiled)
    overrides = ["train.remat=auto", "train.rows_per_device=auto", "train.accumulation=4"]
    found = at_start.settled(load(str(tiny.__file__), overrides)).train
    assert (found.remat, found.rows_per_device, found.accumulation) == (fits, rows, 4 // rows)
    said = capsys.readouterr().out
    assert f"train.rows_per_device=auto and train.remat=auto: {rows} row(s)" in said
    assert f"remat {fits}, planned to take" in said


def test_auto_goes_on_where_a_compiler_dies(records, monkeypatch, capsys):
    def compiled(config, mesh, target):
        if config.train.remat == "none":
            raise UserError("the compiler was ended by SIGKILL")
        return needing(0.001)(config, mesh)

    monkeypatch.setattr(at_start, "in_a_child", compiled)
    found = at_start.settled(load(str(tiny.__file__), ["train.remat=auto"])).train
    assert found.remat == "dots"
    assert "remat none is left out: the compiler was ended" in capsys.readouterr().err


def test_auto_remat_keeps_the_rows_it_is_given(records, monkeypatch):
    monkeypatch.setattr(
        at_start, "in_a_child", lambda config, mesh, _: needing(0.001)(config, mesh)
    )
    overrides = ["train.remat=auto", "train.rows_per_device=2", "train.accumulation=3"]
    found = at_start.settled(load(str(tiny.__file__), overrides)).train
    assert (found.remat, found.rows_per_device, found.accumulation) == ("none", 2, 3)


def test_time_grows_where_links_do_not_keep_up():
    """Gathering from other machines for every micro-batch costs more than computing."""
    inside = estimate(stage1(), 8, 8, needing(1)(stage1(), None), H100)
    across = estimate(stage1(), 1, 64, needing(1)(stage1(), None), H100)
    assert inside.traffic_seconds < inside.compute_seconds
    assert across.traffic_seconds > 3 * inside.traffic_seconds
    assert 0.1 < inside.mfu < 0.4


def test_an_estimate_adds_up():
    """The peak has the waiting batches, an update its reading and writing, and all its traffic."""
    config = stage1()
    found = estimate(config, 8, 8, needing(1)(config, None), H100)
    assert found.peak == sum(found.state) + found.batch + found.temporary
    assert found.batch > 0 and min(found.traffic) > 0
    moving = found.traffic.fsdp / H100.link + found.traffic.data / H100.network
    assert found.traffic_seconds == pytest.approx(moving)
    updating = 2 * sum(found.state) / H100.bandwidth
    slower = max(found.compute_seconds, moving)
    assert found.seconds == pytest.approx(8 * slower + updating)
    # TF32 is half as fast, and more is moved.
    exact = estimate(stage1(precision="float32"), 8, 8, needing(1)(config, None), H100)
    assert exact.compute_seconds == pytest.approx(2 * found.compute_seconds)
    assert exact.traffic.fsdp == pytest.approx(2 * found.traffic.fsdp)


def test_a_plan_that_finds_nothing_says_so(capsys, monkeypatch):
    monkeypatch.setattr(report, "in_a_child", lambda config, mesh, _: needing(999)(config, mesh))
    shown = planned(capsys, monkeypatch, "--config", tiny.__file__, "--devices", "2")
    assert "nothing fits 2 h100-80gb" in shown and "more devices" in shown
    assert "recommended" not in shown


def test_the_memory_of_a_gpu_is_what_jax_was_given(monkeypatch):
    class Gpu:
        device_kind = "NVIDIA H100 80GB HBM3"

        def memory_stats(self):
            return {"bytes_limit": 60 * GIB}

    monkeypatch.setattr(at_start.jax, "devices", lambda: [Gpu()])
    monkeypatch.setattr(at_start.jax, "local_devices", lambda: [Gpu()])
    found = at_start.this_device()
    assert found.name == "h100-80gb" and found.memory == int(60 * GIB / 0.9)
    monkeypatch.setattr(Gpu, "device_kind", "Quadro")
    monkeypatch.setattr(at_start.jax, "default_backend", lambda: "gpu")
    assert at_start.this_device().memory == int(60 * GIB / 0.9)
    monkeypatch.setattr(Gpu, "memory_stats", lambda self: None)
    with pytest.raises(UserError, match=r"memory of 'Quadro' is not known: give train.rows_per"):
        at_start.this_device()


def test_a_run_without_memory_says_what_takes_less(records, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(loop, "train", full)
    with pytest.raises(SystemExit, match="2"):
        entry.run(train.parser(), train.main, tiny.arguments(records, tmp_path))
    assert "out of memory: RESOURCE_EXHAUSTED" in capsys.readouterr().err


def planned(capsys, monkeypatch, *flags):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    entry.run(plan.parser(), plan.main, [str(flag) for flag in flags])
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_is_printed_for_people_and_for_machines(capsys, monkeypatch):
    flags = ("--config", tiny.__file__, "--devices", "2", "--config.train.accumulation=1")
    shown = planned(capsys, monkeypatch, *flags, "--device", "h200")
    for text in ("A device of 2 h200: mesh data 1 x fsdp 2", "device hours", "from shapes",
                 "formula", "1,024", "recommended on 2:", "--config.train.remat="):  # fmt: skip
        assert text in shown, text
    found = json.loads(planned(capsys, monkeypatch, *flags, "--json", "--no-recommend"))
    (asked,) = found["asked"]
    assert asked["devices"] == 2 and asked["fits"] and found["recommended"] is None
    assert asked["peak"] > sum(asked["state"].values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "h300"], "unknown device 'h300': known are a100-40gb, a100-80gb, h100-80gb"),
        (["--devices", "0"], "'0': expected numbers from 1 to 4096"),
        (["--devices", "8,"], "'8,': expected numbers from 1 to 4096"),
        (["--devices", "99999"], "'99999': expected numbers from 1 to 4096"),
        (["--config.mesh.fsdp=3"], "mesh.data=-1 x mesh.fsdp=3 does not make 8 devices"),
        (["--config.train.remt=full"], "did you mean 'remat'"),
    ],
)
def test_a_plan_of_what_cannot_be_is_refused(capsys, monkeypatch, flags, message):
    with pytest.raises(SystemExit, match="2"):
        planned(capsys, monkeypatch, "--config", tiny.__file__, *flags)
    assert message in capsys.readouterr().err
