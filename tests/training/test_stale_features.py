"""A feature cache is refused when it is not what training needs, with what is wrong."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from caches import DROPOUT, configured, fill, names

from jaxvlm import cache_features as command
from jaxvlm.data.features import shards
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.training import features, loop
from jaxvlm.training.weights import save_weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_size": 28}, r"data.image_size=56, now it is 28"),
        ({"data__resize": "pad"}, r"data.resize='short_side', now it is 'pad'"),
        ({"precision": "bfloat16"}, r"precision='float32', now it is 'bfloat16'"),
        (
            {"seed": 3},
            r"the weights of VGGT='random, 0', now it is 'random, 3'; give data.features.folder",
        ),
        (
            {"data__features__dtype": "float32"},
            r"data.features.dtype='bfloat16', .*; give --config.data.features.dtype=bfloat16 to",
        ),
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


@pytest.mark.slow
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
    before = training_rows(configured(data, folder), 4).batch(0, 4)["features"]
    os.utime(data.parent / "scene2_1.png", (1, 1))
    shutil.copytree(data.parent, tmp_path / "moved")
    for path in (data, tmp_path / "moved" / data.name):
        after = training_rows(configured(path, folder), 4).batch(0, 4)["features"]
        np.testing.assert_array_equal(after, before)


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
    before = names(folder)
    (folder / "images.json").write_text(content)
    training_rows(configured(data, folder), 4)
    fill(data, folder)
    assert names(folder) == before
    assert len(json.loads((folder / "images.json").read_text())) == 11


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


def test_without_memory_for_a_batch_a_smaller_one_is_asked_for(data, tmp_path):
    config = ["--config", str(Path(tiny.__file__)), "--batch_sets", str(10**10)]
    flags = command.parser().parse_args(config)
    flags.overrides = [f"data.train={data}", f"data.features.folder={tmp_path / 'features'}"]
    with pytest.raises(UserError, match=r"^out of memory: .*What takes less: a smaller --batch_s"):
        command.main(flags)


def test_a_cache_filled_for_other_subsets_says_so(filled):
    data, folder = filled
    with pytest.raises(UserError, match=r"filled for data.view_dropout=0.0, now it is 0.5"):
        training_rows(configured(data, folder, **DROPOUT), 4)
    fill(data, folder, data__view_dropout=0.5, data__features__variants=1)
    with pytest.raises(UserError, match=r"filled for data.features.variants=1, now it is 8"):
        training_rows(configured(data, folder, data__view_dropout=0.5), 4)


def test_a_shard_of_another_cache_is_refused(filled, tmp_path):
    data, folder = filled
    fill(data, tmp_path / "other", seed=5)
    foreign = folder / "features-00001.safetensors"
    shutil.copy(tmp_path / "other" / "features-00000.safetensors", foreign)
    for work in (lambda: training_rows(configured(data, folder), 4), lambda: fill(data, folder)):
        with pytest.raises(UserError, match=r"00001.safetensors is of another cache"):
            work()
    assert foreign.exists()


def test_features_of_another_shape_are_refused(filled):
    data, folder = filled
    about = json.loads((folder / "cache.json").read_text())
    for tokens in (5, 500, 10**9):
        (folder / "cache.json").write_text(json.dumps({**about, "tokens": tokens}))
        with pytest.raises(UserError, match=r"holds features \[\d+, 32\] .* expected"):
            training_rows(configured(data, folder), 4)


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
