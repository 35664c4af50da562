"""Filling a feature cache: once, from where it stopped, and without harming what is not its own."""

import errno
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from caches import DROPOUT, configured, fill, held, names
from PIL import Image

from jaxvlm import cache_features as command
from jaxvlm.data.features import shards
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.shares import Share
from jaxvlm.training import features, loop, prepare
from jaxvlm.training.weights import save_weights


@pytest.mark.slow
def test_training_reads_features_and_never_runs_vggt(data, tmp_path, monkeypatch):
    config = fill(data, tmp_path / "features", **DROPOUT)
    loaded = []
    parameters = prepare.all_parameters

    def watched(*arguments, **named):
        made = parameters(*arguments, **named)
        loaded.extend(made)
        return made

    monkeypatch.setattr(prepare, "all_parameters", watched)
    monkeypatch.setattr("jaxvlm.models.vlm.features_of", None)
    loop.train(config, tmp_path / "run")
    assert loaded and not any(path.startswith("vision/") for path in loaded)
    assert (tmp_path / "run" / "checkpoints" / "6").is_dir()


def test_a_cache_serves_other_seeds_and_fewer_views(data, tmp_path, toy):
    vision = {p: np.asarray(v) for p, v in toy.frozen.items() if p.startswith("vision/")}
    save_weights(tmp_path / "vggt", vision, {"model": {"vision": {}}})
    weights, folder = {"model__vision__weights": str(tmp_path / "vggt")}, tmp_path / "features"
    fill(data, folder, **weights, **DROPOUT)
    before, shown = names(folder), []
    for seed in (0, 1):
        rows = training_rows(configured(data, folder, seed=seed, **weights, **DROPOUT), 12)
        shown.append([group.views for index in range(12) for group in rows.plan.row(index)])
    assert shown[0] != shown[1] and {*shown[0], *shown[1]} == {(0,), (1,), (0, 1)}
    fill(data, folder, data__num_views=1, **weights)
    # The first view of each of six sets; what stands stays.
    assert names(folder) >= before and len(names(folder)) - len(before) <= 6


def test_the_same_command_goes_on(data, tmp_path, capsys):
    folder, other = tmp_path / "features", tmp_path / "other"
    whole = fill(data, other, **DROPOUT)
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:6]))
    fill(data, folder, **DROPOUT)
    before = {path.name: path.stat().st_mtime_ns for path in shards.shard_files(folder)}
    data.write_text("".join(lines))
    with pytest.raises(UserError, match=r"lacks 3 of 6 image sets: that of .*scene3_0.png"):
        training_rows(configured(data, folder, **DROPOUT), 4)
    capsys.readouterr()
    config = fill(data, folder, **DROPOUT)
    assert "stand in" in capsys.readouterr().out
    assert {n: (folder / n).stat().st_mtime_ns for n in before} == before
    one, two = (training_rows(c, 4).batch(0, 4) for c in (config, whole))
    np.testing.assert_array_equal(one["features"], two["features"])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.999])
def test_a_shard_that_is_cut_short_is_named_and_made_anew(filled, tmp_path, share, capsys):
    data, folder = filled
    config = configured(data, folder)
    expected = training_rows(config, 4).batch(0, 4)["features"].copy()
    (shard,) = shards.shard_files(folder)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"features-00000.safetensors is damaged .*cache_features"):
        training_rows(config, 4)
    fill(data, folder)
    assert "removed: the feature shard" in capsys.readouterr().out
    np.testing.assert_array_equal(training_rows(config, 4).batch(0, 4)["features"], expected)


@pytest.mark.slow
def test_a_full_disk_is_noticed_before_and_during(data, tmp_path, monkeypatch):
    folder = tmp_path / "features"
    with monkeypatch.context() as patched:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patched.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"has 1 kB free, .*are needed: choose another"):
            fill(data, folder)
    with monkeypatch.context() as patched:

        def full(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(shards, "save_file", full)
        with pytest.raises(UserError, match=r"features-00000.*cannot be written: .*No space left"):
            fill(data, folder)
    assert not list(folder.glob("features*"))
    fill(data, folder)


def test_shards_of_a_few_sets_each_hold_all(data, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_SHARD_BYTES", 1000)
    config = fill(data, tmp_path / "features", **DROPOUT)
    assert len(shards.shard_files(tmp_path / "features")) > 3
    whole = fill(data, tmp_path / "whole", **DROPOUT)
    one, two = (training_rows(c, 8).batch(0, 8) for c in (config, whole))
    np.testing.assert_array_equal(one["features"], two["features"])


def test_images_of_one_set_with_and_without_geometry_share_features(filled, tmp_path):
    data, folder = filled
    line = json.loads(data.read_text().splitlines()[0])
    with data.open("a") as file:
        file.write(json.dumps({**line, "geom_token": None, "question": "And without?"}) + "\n")
    config = fill(data, folder)
    assert len(names(folder)) == 6
    training_rows(config, 4)


def test_an_actions_first_view_is_in_every_subset(data, tmp_path):
    line = json.loads(data.read_text().splitlines()[0])
    with data.open("a") as file:
        action = {"action": "place_anchor", "scene": line["scene_id"], "center": [0, 1, 0],
                  "normal": [0, 1, 0], "extent": [1, 1, 1]}  # fmt: skip
        file.write(json.dumps({**line, "instruction": "Look.", "action_json": action}) + "\n")
    config = fill(data, tmp_path / "features", data__view_dropout=0.8, data__row_labels=140,
                  data__row_length=240, text__max_length=200)  # fmt: skip
    rows = training_rows(config, 30)
    kept = {
        (rows.builder.records[rows.builder.samples[group.samples[0]].record].scene_id, group.views)
        for index in range(30)
        for group in rows.plan.row(index)
    }
    assert {views for scene, views in kept if scene == "scene0"} <= {(0,), (0, 1)}
    assert ("scene1", (1,)) in kept or ("scene2", (1,)) in kept or ("scene3", (1,)) in kept


def test_the_features_are_readable_to_others_and_by_the_library(filled, tmp_path):
    import torch
    from safetensors import safe_open

    _, folder = filled
    (shard,) = shards.shard_files(folder)
    assert shard.stat().st_mode & 0o777 == (folder / "cache.json").stat().st_mode & 0o777
    with safe_open(shard, "pt") as file:
        for name, ours in held(folder).items():
            theirs = file.get_tensor(name)
            assert theirs.dtype == torch.bfloat16
            np.testing.assert_array_equal(theirs.view(torch.uint16), ours.view(np.uint16))


def test_the_command_says_size_and_time_before_it_starts(data, tmp_path, capsys):
    flags = command.parser().parse_args(["--config", str(Path(tiny.__file__))])
    flags.overrides = [f"data.train={data}", f"data.features.folder={tmp_path / 'features'}"]
    command.main(flags)
    printed = capsys.readouterr().out
    # 11 views of 16 + 5 tokens, 32 wide, in two bytes.
    assert "size 14.8 kB, of which 0 bytes stand in" in printed
    assert printed.index("14.8 kB are to write") < printed.index("(h:mm:ss) to encode")
    assert "6 image sets, 6 different subsets of their views (11 views)" in printed


@pytest.mark.slow
def test_a_run_goes_on_where_the_cache_was_moved(data, tmp_path, capsys):
    config = fill(data, tmp_path / "features", **DROPOUT)
    loop.train(config, tmp_path / "run")
    (tmp_path / "features").rename(tmp_path / "moved")
    loop.train(configured(data, tmp_path / "moved", **DROPOUT), tmp_path / "run")
    assert "all 6 updates stand" in capsys.readouterr().out
    # Without the cache other views would be shown.
    with pytest.raises(UserError, match=r"records of data.train, or their views, differ"):
        loop.train(tiny.config_for(data, **DROPOUT), tmp_path / "run")


@pytest.mark.slow
def test_killed_and_started_again(data, tmp_path, python):
    """The process dies between two shards; the next one keeps the first and removes the draft."""
    folder = tmp_path / "features"
    program = tmp_path / "slow.py"
    program.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(tiny.__file__).parent)!r})\n"
        "import tiny\n"
        "from jaxvlm.training import features\n"
        "features._SHARD_BYTES = 1\n"
        "write = features.write_shard\n"
        "def slow(folder, *rest):\n"
        "    write(folder, *rest)\n"
        "    (folder / 'features-00009.safetensors.0123456789ab.draft').write_text('cut')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "features.write_shard = slow\n"
        f"features.cache_features(tiny.config_for({str(data)!r},"
        f" data__features__folder={str(folder)!r}), 2)\n"
    )
    process = python(program)
    while "written" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()[-2000:]
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    before = names(folder)
    assert 0 < len(before) < 6
    with pytest.raises(UserError, match=r"half written"):
        training_rows(configured(data, folder), 4)
    config = fill(data, folder)
    assert names(folder) > before and not list(folder.glob("*.draft"))
    training_rows(config, 4)


def test_an_image_that_is_gone_stops_the_filling(data, tmp_path, monkeypatch):
    config = configured(data, tmp_path / "features")

    def gone(folder, images):
        made = known(folder, images)
        (data.parent / "scene4_0.png").unlink()
        return made

    known = features.known_images
    monkeypatch.setattr(features, "known_images", gone)
    with pytest.raises(UserError, match=r"scene4_0.png' cannot be read"):
        features.cache_features(config, 2)
    assert Image.open(data.parent / "scene4_1.png").size == (tiny.SIDE, tiny.SIDE)


@pytest.mark.slow
def test_an_image_that_changes_while_features_are_made_stops_the_filling(
    data, tmp_path, monkeypatch
):
    """Or its features would bear the name of what it was."""
    folder = tmp_path / "features"
    whole = held(fill_into(data, tmp_path / "whole"))

    def changing(directory, images):
        made = known(directory, images)
        tiny.picture("white", 0).save(data.parent / "scene4_1.png")
        return made

    known = features.known_images
    with monkeypatch.context() as patched:
        patched.setattr(features, "known_images", changing)
        with pytest.raises(UserError, match=r"scene4_1.png' changed while features were made"):
            fill(data, folder)
    # What was made before is kept and right.
    for name, made in held(folder).items():
        np.testing.assert_array_equal(made.view(np.uint16), whole[name].view(np.uint16))


def fill_into(data, folder):
    fill(data, folder)
    return folder


def test_what_is_not_its_own_is_left_alone(filled, tmp_path):
    data, folder = filled
    mine = ["thesis.draft", "features-mine.safetensors", "features-00001.safetensors.draft"]
    for name in mine:
        (folder / name).write_text("mine")
    fill(data, folder)
    assert all((folder / name).read_text() == "mine" for name in mine)
    other = tmp_path / "other"
    other.mkdir()
    (other / "features-00000.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'features-00000.safetensors', and no feature ca"):
        fill(data, other)
    assert (other / "features-00000.safetensors").read_text() == "mine"


def test_a_shard_that_cannot_be_read_is_not_removed(filled, monkeypatch):
    data, folder = filled
    (shard,) = shards.shard_files(folder)

    def failing(self, *arguments, **named):
        if self == shard:
            raise OSError(errno.EIO, "Input/output error")
        return opened(self, *arguments, **named)

    opened = Path.open
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing)
        with pytest.raises(UserError, match=r"00000.safetensors cannot be read: Input/output"):
            fill(data, folder)
    assert shard.exists()


def test_a_start_that_fails_leaves_no_cache_behind(data, tmp_path):
    folder = tmp_path / "features"
    with pytest.raises(UserError, match="does not exist"):
        fill(tmp_path / "nowhere.jsonl", folder, data__image_size=28)
    fill(data, folder)


@pytest.mark.slow
def test_jobs_with_shares_fill_one_cache(data, tmp_path, capsys):
    whole = names(fill_folder(data, tmp_path / "whole"))
    folder = tmp_path / "features"
    config = configured(data, folder, **DROPOUT)
    features.cache_features(config, 4, Share(1, 2))
    first = names(folder)
    assert 0 < len(first) < len(whole)
    assert f"holds shard 1/2, and {len(first)} of all {len(whole)} subsets" in (
        capsys.readouterr().out
    )
    features.cache_features(config, 4, Share(0, 2))
    assert names(folder) == whole
    # Numbers of shards tell whose they are.
    numbers = sorted(
        int(path.stem.removeprefix("features-")) for path in shards.shard_files(folder)
    )
    assert {number % 2 for number in numbers} == {0, 1}
    fill(data, folder, **DROPOUT)
    assert "0 bytes are to write" in capsys.readouterr().out


def test_shares_leave_the_drafts_of_others(data, tmp_path):
    folder = tmp_path / "features"
    fill(data, folder, **DROPOUT)
    drafts = [folder / f"features-0000{n}.safetensors.0123456789ab.draft" for n in (0, 1)]
    for draft in drafts:
        draft.write_text("half")
    features.cache_features(configured(data, folder, **DROPOUT), 4, Share(1, 2))
    assert [draft.exists() for draft in drafts] == [True, False]


def fill_folder(data, folder):
    fill(data, folder, **DROPOUT)
    return folder
