"""What a run shows of itself: its line, its histograms, its status."""

import json
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import board, logged

from jaxvlm.errors import Requeue, UserError
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training import loop, pace
from jaxvlm.training.hardware import by_name
from jaxvlm.training.histograms import EDGES, histograms
from jaxvlm.training.metric_log import MetricLog, shown
from jaxvlm.training.state import abstract_parameters
from jaxvlm.training.status import status
from jaxvlm.training.work import Work, model_flops, trained_shares

VALUES = {
    "loss": 1.23456, "token_accuracy": 0.5, "lr/language": 5e-6, "lr/projector": 2e-4,
    "gradient_norm": 0.712, "updates_per_second": 0.1, "samples_per_second": 19.2,
    "tokens_per_second": 51234.0, "mfu": 0.412, "memory_gib": 61.24, "input_wait": 0.01,
    "eta_seconds": 8400.0, "skipped": 0, "lost_samples": 0,
}  # fmt: skip


def test_the_line_has_what_people_look_for():
    assert shown(12, 937, VALUES) == (
        "Step 12/937  Loss 1.2346  token accuracy 0.500  lr language 5e-06 projector 0.0002  "
        "grad 0.71  0.1 updates/s  19.2 samples/s  51,234 tokens/s  MFU 41.2%  61.2 GiB  "
        "input wait 1.0%  ETA 2:20:00"
    )


def test_the_line_leaves_out_what_cannot_be_known():
    rates = {"lr/language": 1e-3, "lr/projector": 1e-3}
    line = shown(1, 9, VALUES | rates | {"mfu": None, "memory_gib": None, "loss": None})
    assert "lr 0.001  " in line and "MFU" not in line and "GiB" not in line and "Loss -" in line


def test_histograms_count_every_value_once():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(40, 50)) * 10.0 ** rng.integers(-9, 3, (40, 50))).astype(np.float32)
    values[0, :3] = 0
    found = histograms({"x": jnp.asarray(values)})["x"]
    # As numpy counts: the first bin has all below, the last all above.
    ends = np.concatenate([[-np.inf], EDGES[:-1], [np.inf]])
    expected = [((values > a) & (values <= b)).sum() for a, b in pairwise(ends)]
    np.testing.assert_array_equal(found.counts, expected)
    assert found.counts.sum() == values.size
    assert (found.least, found.most) == (values.min(), values.max())
    assert found.total == pytest.approx(values.sum(dtype=np.float64), rel=1e-4)


@pytest.mark.slow
def test_histograms_are_shown_when_asked_for(records, tmp_path):
    config = tiny.config_for(records, train__max_steps=2, train__histograms_every=2)
    loop.train(config, tmp_path)
    shown = [(value.tag, value.histo.num) for value in board(tmp_path) if value.HasField("histo")]
    assert {tag.split("/")[0] for tag, _ in shown} == {"parameters", "gradients"}
    # Once, of update 2, and of as many gradients as parameters.
    assert len({tag for tag, _ in shown}) == len(shown)
    sizes = [sum(num for tag, num in shown if tag.startswith(f"{what}/"))
             for what in ("parameters", "gradients")]  # fmt: skip
    assert sizes[0] == sizes[1] > 0
    assert len(logged(tmp_path)) == 2


def ended(folder, error=None):
    try:
        with status(folder) as begin:
            begin()
            running = json.loads((folder / "status.json").read_text())
            assert running["state"] == "running" and running["pid"] > 0
            if error:
                raise error
    except BaseException as caught:
        assert caught is error
    return json.loads((folder / "status.json").read_text())


def test_a_status_tells_how_a_run_ended(tmp_path):
    assert ended(tmp_path)["state"] == "finished"
    stopped = ended(tmp_path, Requeue("stopped by SIGTERM: the checkpoint of update 4 stands"))
    assert stopped["state"] == "stopped" and "update 4" in stopped["reason"]
    failed = ended(tmp_path, UserError("the loss is nan\nand more"))
    assert failed["state"] == "failed" and failed["reason"] == "UserError: the loss is nan"


def test_a_start_that_fails_is_told(records, tmp_path):
    with pytest.raises(UserError):
        loop.train(tiny.config_for(records), tmp_path, resume_from=7)
    told = json.loads((tmp_path / "status.json").read_text())
    assert told["state"] == "failed" and "7" in told["reason"]
    # What a run has said that stands there is left alone.
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    with pytest.raises(UserError):
        loop.train(tiny.config_for(records), tmp_path, resume_from=7)
    assert json.loads((tmp_path / "status.json").read_text()) == {"state": "finished"}


def test_metrics_that_cannot_be_read_stop_the_start(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        MetricLog(tmp_path, 0, 9)


def test_pace_is_of_all_devices(toy, monkeypatch):
    """Two updates in four seconds, with three left, on devices of a known peak."""
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(pace, "by_kind", lambda kind: by_name("h200"))
    config = toy.config.copy_and_resolve_references()
    config.train.max_steps, config.precision = 5, "bfloat16"
    learning = set(toy.trained)
    run = SimpleNamespace(config=config, image=(tiny.SIDE, tiny.SIDE), learning=learning)
    feed = SimpleNamespace(waited=0.0)
    each = pace.Pace(run, 0, feed)
    feed.waited = 1.0
    work = Work(samples=4, tokens=90, pairs=900, sets=2, views=4, squares=8, labels=12)
    found = each.read(2, work)
    assert found["updates_per_second"] == 0.5 and found["samples_per_second"] == 2
    assert found["eta_seconds"] == 6 and found["input_wait"] == 0.25
    model = vlm_config(config.model)
    shares = trained_shares(abstract_parameters(model), learning)
    flops = model_flops(model, work, run.image, shares, False)
    assert found["mfu"] == pytest.approx(0.5 * flops / (989.4e12 * jax.device_count()))
