"""The feature cache: filled once, resumed, and refused when it is not what training needs."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from jaxvlm import cache_features as command
from jaxvlm.data.features import cache, shards
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.training import features, loop
from jaxvlm.training.weights import save_weights

DROPOUT = {"data__view_dropout": 0.5}


@pytest.fixture
def data(tmp_path):
    """A record file of its own, beside its images, for tests that change them."""
    folder = tmp_path / "data"
    folder.mkdir()
    return tiny.write_records(folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with `data` and the `features` of it, without view dropout."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "data").mkdir()
    fill(tiny.write_records(folder / "data"), folder / "features")
    return folder


@pytest.fixture
def filled(template, tmp_path):
    """A copy of the template's record file and folder of features."""
    shutil.copytree(template, tmp_path / "copy")
    return tmp_path / "copy" / "data" / "records.jsonl", tmp_path / "copy" / "features"


def configured(data, folder, **changes):
    return tiny.config_for(data, data__features__folder=str(folder), **changes)


def fill(data, folder, **changes):
    config = configured(data, folder, **changes)
    features.cache_features(config, batch_sets=2)
    return config


def held(folder):
    """The features of a folder by name."""
    made = json.loads((folder / "cache.json").read_text())["made_from"]
    return shards.Shards(folder, cache.label_of(made))


def names(folder):
    return set(held(folder))


def test_training_reads_features_and_never_runs_vggt(data, tmp_path, monkeypatch):
    config = fill(data, tmp_path / "features", **DROPOUT)
    loaded = []
    parameters = loop.all_parameters

    def watched(*arguments, **named):
        made = parameters(*arguments, **named)
        loaded.extend(made)
        return made

    monkeypatch.setattr(loop, "all_parameters", watched)
    monkeypatch.setattr("jaxvlm.models.vlm.features_of", None)
    for record in json.loads(data.read_text().splitlines()[0])["images"]:
        assert (data.parent / record).exists()
    loop.train(config, tmp_path / "run")
    assert loaded and not any(path.startswith("vision/") for path in loaded)
    assert (tmp_path / "run" / "checkpoints" / "6").is_dir()


def test_a_cache_serves_other_seeds_and_fewer_views_are_others(data, tmp_path):
    folder = tmp_path / "features"
    fill(data, folder, model__vision__weights=None, **DROPOUT)
    before = names(folder)
    subsets = {
        tuple(group.views)
        for seed in (0, 1)
        for row in _rows(configured(data, folder, **DROPOUT), seed)
        for group in row
    }
    assert subsets == {(0,), (1,), (0, 1)}
    fill(data, folder, data__num_views=1)
    # One view of each of six sets; the eleven images are held already, as subsets of one view.
    assert names(folder) >= before and len(names(folder)) - len(before) <= 6


def _rows(config, seed):
    rows = training_rows(config, 12)
    rows.plan._seed = seed
    return [rows.plan.row(index) for index in range(12)]


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_size": 28}, r"data.image_size=56, now it is 28"),
        ({"data__resize": "pad"}, r"data.resize='short_side', now it is 'pad'"),
        ({"precision": "bfloat16"}, r"precision='float32', now it is 'bfloat16'"),
        ({"seed": 3}, r"the weights of VGGT='random, 0', now it is 'random, 3'"),
        ({"data__features__dtype": "float32"}, r"data.features.dtype='bfloat16'"),
        ({"data__jpeg_draft": True}, r"data.jpeg_draft=False, now it is True"),
        ({"data__image_height": 28}, r"data.image_height=56, now it is 28"),
        ({"model__vision__num_heads": 4}, r"model.vision.num_heads=2, now it is 4"),
    ],
)
@pytest.mark.parametrize("work", ["train", "cache"])
def test_a_stale_cache_is_refused_with_what_changed(filled, tmp_path, changes, message, work):
    data, folder = filled
    config = configured(data, folder, **changes)
    with pytest.raises(UserError, match=rf"is stale: it was made with {message}"):
        if work == "train":
            loop.train(config, tmp_path / "run")
        else:
            features.cache_features(config, 2)


def test_other_weights_are_noticed_by_their_content(data, tmp_path, toy):
    vision = {p: np.asarray(v) for p, v in toy.frozen.items() if p.startswith("vision/")}
    sizes = {"vision": {}}
    save_weights(tmp_path / "one", vision, {"model": sizes})
    changed = {**vision, "vision/aggregator/camera_token": np.full((1, 2, 1, 16), 0.5, np.float32)}
    save_weights(tmp_path / "two", changed, {"model": sizes})
    folder = tmp_path / "features"
    fill(data, folder, model__vision__weights=str(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    loop.train(
        configured(data, folder, model__vision__weights=str(tmp_path / "moved")), tmp_path / "run"
    )
    with pytest.raises(UserError, match=r"stale: it was made with the weights of VGGT="):
        loop.train(
            configured(data, folder, model__vision__weights=str(tmp_path / "two")), tmp_path / "r2"
        )


def test_a_changed_image_is_named(filled, tmp_path):
    data, folder = filled
    config = fill(data, folder)
    tiny.picture("white", 1).save(data.parent / "scene2_1.png")
    with pytest.raises(UserError, match=r"lacks 1 of 6 .*scene2_1.png' has changed"):
        training_rows(config, 4)
    fill(data, folder)
    training_rows(config, 4)


def test_a_touched_or_moved_image_is_the_same(filled, tmp_path):
    data, folder = filled
    config = configured(data, folder)
    os.utime(data.parent / "scene2_1.png", (1, 1))
    training_rows(config, 4)
    shutil.copytree(data.parent, tmp_path / "moved")
    training_rows(configured(tmp_path / "moved" / data.name, folder), 4)


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


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 1}',
        "{",
        '{"a": {"dtype": "F8"}}',
        "[" * 100_000,
        '{"tokens": Infinity}',
    ],
    ids=range(7),
)
def test_a_damaged_description_is_named(filled, tmp_path, content):
    data, folder = filled
    config = configured(data, folder)
    (folder / "cache.json").write_text(content)
    with pytest.raises(UserError, match=r"cache.json is damaged"):
        training_rows(config, 4)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 3}', "null", "[" * 100_000], ids=range(6)
)
def test_lost_notes_on_images_cost_only_time(filled, tmp_path, content):
    data, folder = filled
    config = configured(data, folder)
    (folder / "images.json").write_text(content)
    training_rows(config, 4)
    fill(data, folder)


def test_another_format_is_refused(filled, tmp_path):
    data, folder = filled
    config = configured(data, folder)
    about = folder / "cache.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 7}))
    with pytest.raises(UserError, match=r"of format 7, expected 1"):
        training_rows(config, 4)


def test_no_cache_says_how_to_make_one(data, tmp_path):
    config = configured(data, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no feature cache; make it: python -m jaxvlm.cache"):
        training_rows(config, 4)


def test_features_of_vision_that_learns_are_refused(data, tmp_path):
    rules = (("vision/.*norm.*", "language"), ("vision/.*", "frozen"), (".*", "language"))
    config = configured(data, tmp_path / "features", parameters=rules)
    for work in (lambda: loop.train(config, tmp_path), lambda: features.cache_features(config, 1)):
        with pytest.raises(UserError, match=r"'parameters' lets 'vision/.*learn.*freeze"):
            work()


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
        action = {"action": "look"}
        file.write(json.dumps({**line, "instruction": "Look.", "action_json": action}) + "\n")
    config = fill(data, tmp_path / "features", data__view_dropout=0.8, data__row_labels=20)
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "say where to: --config.data.features.folder"),
        (["data.features.folder=f", "data.blind=True"], "data.blind shows no images"),
        (
            ["data.features.folder=f", "data.augment.color_jitter=0.2"],
            "color_jitter=0.2: a f",
        ),
        (["data.features.folder=f", "data.augment.random_crop=0.2"], "random_crop=0.2: a f"),
        (["data.features.folder=f", "data.features.variants=0"], "expected at least 1"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused(data, overrides, message):
    flags = command.parser().parse_args(["--config", str(Path(tiny.__file__))])
    flags.overrides = [f"data.train={data}", *overrides]
    with pytest.raises(UserError, match=message):
        command.main(flags)


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
        "def slow(folder, tensors, label):\n"
        "    write(folder, tensors, label)\n"
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


def test_a_cache_filled_for_other_subsets_says_so(filled):
    data, folder = filled
    with pytest.raises(UserError, match=r"filled for data.view_dropout=0.0, now it is 0.5"):
        training_rows(configured(data, folder, **DROPOUT), 4)
    fill(data, folder, data__view_dropout=0.5, data__features__variants=1)
    with pytest.raises(UserError, match=r"filled for data.features.variants=1, now it is 8"):
        training_rows(configured(data, folder, data__view_dropout=0.5), 4)


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


def test_a_shard_of_another_cache_is_refused(filled, tmp_path):
    data, folder = filled
    fill(data, tmp_path / "other", seed=5)
    foreign = folder / "features-00001.safetensors"
    shutil.copy(tmp_path / "other" / "features-00000.safetensors", foreign)
    for work in (lambda: training_rows(configured(data, folder), 4), lambda: fill(data, folder)):
        with pytest.raises(UserError, match=r"00001.safetensors is of another cache"):
            work()
    assert foreign.exists()


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


def test_features_of_another_shape_are_refused(filled):
    data, folder = filled
    about = json.loads((folder / "cache.json").read_text())
    for tokens in (5, 500, 10**9):
        (folder / "cache.json").write_text(json.dumps({**about, "tokens": tokens}))
        with pytest.raises(UserError, match=r"holds features \[\d+, 32\] .* expected"):
            training_rows(configured(data, folder), 4)


def test_a_start_that_fails_leaves_no_cache_behind(data, tmp_path):
    folder = tmp_path / "features"
    with pytest.raises(UserError, match="does not exist"):
        fill(tmp_path / "nowhere.jsonl", folder, data__image_size=28)
    fill(data, folder)


def test_a_cache_turned_on_or_off_is_another_stream(filled):
    """The views are drawn otherwise, and the rows with them."""
    data, folder = filled
    on, off = training_rows(configured(data, folder), 4), training_rows(tiny.config_for(data), 4)
    assert on.fingerprint != off.fingerprint
    assert on.fingerprint == training_rows(configured(data, folder), 9).fingerprint


def test_a_lost_cache_is_no_lost_image(filled):
    """Leaving out bad records does not leave out everything when the disk is gone."""
    data, folder = filled
    rows = training_rows(configured(data, folder, data__on_bad_record="skip"), 4)
    for path in shards.shard_files(folder):
        path.unlink()
    with pytest.raises(UserError, match=r"features-00000.safetensors cannot be read"):
        rows.batch(0, 1)
