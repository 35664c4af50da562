"""Rows: what stands in the arrays that a model reads, from the contract's side."""

import hypothesis.strategies as st
import numpy as np
import pytest
import tiny
from hypothesis import given, settings

from jaxvlm.data.framing import Framing
from jaxvlm.data.packing import Capacity, Group
from jaxvlm.data.plan import Plan
from jaxvlm.data.readers import ImageReader
from jaxvlm.data.rows import RowBuilder, VisualLayout
from jaxvlm.data.sequence import tokenize
from jaxvlm.data.sources import load_sources
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.data.training_set import training_rows
from jaxvlm.data.views import RandomViews

SIDE, VIEWS, LATENTS, SETS = 14, 3, 4, 3
CAPACITY = Capacity(160, SETS, SETS * VIEWS, 40, 4)
LAYOUTS = {
    "per_view": VisualLayout("per_view", VIEWS, LATENTS),
    "pooled": VisualLayout("pooled", 2, LATENTS),
    "none": VisualLayout("none", 0, LATENTS),
}


@pytest.fixture(scope="module")
def records(scenes_file):
    return load_sources([{"path": str(scenes_file)}], (), "error")[0].records


def builder(records, mode="per_view", blind=False, capacity=CAPACITY) -> RowBuilder:
    tokenizer = load_tokenizer("jaxvlm:rooms")
    samples, _ = tokenize(records, tokenizer, "plain", 100, VIEWS + LATENTS)
    reader = ImageReader(framing=Framing(SIDE, SIDE), views=VIEWS, blind=blind)
    placeholder, pad = tokenizer.placeholder_id, tokenizer.pad_id
    return RowBuilder(
        records, samples, capacity, LAYOUTS[mode], reader, placeholder, pad, [0] * len(records)
    )


def planned(build: RowBuilder, dropout: float, seed: int) -> list[list[Group]]:
    plan = Plan(
        build.samples,
        [(1.0, range(len(build.samples)))],
        build.capacity,
        lambda views, known: len(build.layout.index(views, known)),
        RandomViews(most=VIEWS, dropout=dropout),
        seed,
    )
    return [plan.row(index) for index in range(plan.rows_in_epoch(0))]


def built(build: RowBuilder, groups) -> dict[str, np.ndarray]:
    """One row, without the batch's axis."""
    return {name: value[0] for name, value in build.batch([groups]).items()}


def text_of(record) -> str:
    return f"{record.situation} {record.question}\n".lstrip()


def check_sample(build: RowBuilder, row: dict, segment: int, set_index: int, group, index: int):
    """One sample read back from the row, knowing only its segment."""
    tokenizer, record = load_tokenizer("jaxvlm:rooms"), build.records[index]
    (places,) = np.nonzero(row["segment_ids"] == segment)
    start, end = places[0], places[-1] + 1
    assert end - start == len(places)
    np.testing.assert_array_equal(row["positions"][start:end], np.arange(len(places)))
    tokens, visual = row["tokens"][start:end], row["visual_index"][start:end]

    # Each vector that belongs to the sample's kept views once, in order; text elsewhere.
    slots = {"per_view": len(group.views), "pooled": 2, "none": 0}[build.layout.mode]
    slots = slots if record.geometry and not build.reader.blind else 0
    latents = build.layout.geometry + np.arange(LATENTS)
    expected = set_index * build.layout.size + np.concatenate([np.arange(slots), latents])
    (seen,) = np.nonzero(visual >= 0)
    np.testing.assert_array_equal(visual[seen], expected)
    np.testing.assert_array_equal(seen, np.arange(seen[0], seen[-1] + 1))
    assert (visual[visual < 0] == -1).all()
    assert (tokens[seen] == tokenizer.placeholder_id).all()

    question, answer = tokenizer.encode([text_of(record), record.answer])
    assert tokens[: seen[0]].tolist() == question
    assert tokens[seen[-1] + 1 :].tolist() == [*tokenizer.encode(["\n"])[0], *answer]

    # The labels in this segment: the answer and its end, each read off one position earlier.
    own = (row["label_positions"] >= start) & (row["label_positions"] < end)
    own &= row["label_weights"] > 0
    labels, positions = row["labels"][own], row["label_positions"][own]
    assert labels.tolist() == [*answer, tokenizer.end_id]
    assert tokenizer.decode(labels) == record.answer
    np.testing.assert_array_equal(row["tokens"][positions[:-1] + 1], labels[:-1])
    assert positions.tolist() == list(range(end - len(labels), end))
    return len(places), len(labels)


def check_row(build: RowBuilder, groups) -> None:
    row = built(build, groups)
    segment = tokens = labels = 0
    for set_index, group in enumerate(groups):
        for index in group.samples:
            segment += 1
            used = check_sample(build, row, segment, set_index, group, index)
            tokens, labels = tokens + used[0], labels + used[1]
    assert row["segment_ids"].max() == segment
    padding = row["segment_ids"] == 0
    assert padding.sum() == build.capacity.tokens - tokens and padding[tokens:].all()
    assert (row["visual_index"][padding] == -1).all()
    assert (row["tokens"][padding] == load_tokenizer("jaxvlm:rooms").pad_id).all()
    assert set(row["label_weights"]) <= {0.0, 1.0} and row["label_weights"].sum() == labels


@settings(max_examples=15, deadline=None)
@given(
    mode=st.sampled_from(sorted(LAYOUTS)),
    blind=st.booleans(),
    dropout=st.floats(0, 0.9),
    seed=st.integers(0, 99),
    length=st.integers(100, 400),
)
def test_rows_hold_their_samples(records, mode, blind, dropout, seed, length):
    build = builder(records, mode, blind, Capacity(length, SETS, SETS * VIEWS, 40, 4))
    rows = planned(build, dropout, seed)
    seen = sorted(index for row in rows for group in row for index in group.samples)
    assert seen == list(range(len(records)))
    for groups in rows:
        check_row(build, groups)


def of_scene(build: RowBuilder, scene: int) -> tuple[int, ...]:
    return tuple(i for i, r in enumerate(build.records) if r.scene_id == f"scene{scene}")


def test_kept_views_move_to_the_front(records):
    build = builder(records)
    # Scenes 2 and 5 have three views, scene 2 has geometry.
    row = built(build, [Group(of_scene(build, 2), (1, 2)), Group(of_scene(build, 5)[:1], (2,))])
    assert row["view_counts"].tolist() == [2, 1, 0]
    greens = [int(image[0, 0, 1]) for image in row["images"]]
    assert greens == [100, 160, 160, *[0] * (SETS * VIEWS - 3)]
    # The first kept camera, not the first camera, is the origin. These look up, and the top of
    # their images, the frame's y, is the world's -y.
    np.testing.assert_allclose(row["geometry"][0, :2, 9:12], [[0, 0, 0], [0, -1, 0]], atol=1e-6)
    assert not row["geometry"][0, 2].any() and not row["geometry"][1:].any()


def test_blind_rows_show_nothing(records):
    seeing, blind = (builder(records, blind=b) for b in (False, True))
    groups = [Group(of_scene(seeing, 2), (0, 1, 2))]
    row = built(blind, groups)
    assert not row["images"].any() and not row["geometry"].any()
    assert row["view_counts"].tolist() == [3, 0, 0]
    shown = row["visual_index"][row["visual_index"] >= 0]
    assert shown.min() == VIEWS and built(seeing, groups)["visual_index"].max() == shown.max()


def test_shapes_and_types_are_those_of_the_contract(records):
    row = built(builder(records), [Group((0,), (0,))])
    shapes = {name: (value.shape, value.dtype.name) for name, value in row.items()}
    tokens, labels = ((160,), "int32"), ((40,), "int32")
    assert shapes == {
        "tokens": tokens,
        "positions": tokens,
        "segment_ids": tokens,
        "visual_index": tokens,
        "label_positions": labels,
        "labels": labels,
        "label_weights": ((40,), "float32"),
        "label_sources": labels,
        "images": ((SETS * VIEWS, SIDE, SIDE, 3), "uint8"),
        "view_counts": ((SETS,), "int32"),
        "geometry": ((SETS, VIEWS, 37), "float32"),
        "lost": ((), "int32"),
    }


def test_labels_tell_their_source(tmp_path):
    """Of two files, questions of both in a batch: what each label counts for."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    files = [tiny.write_records(tmp_path / name) for name in ("first", "second")]
    config = tiny.config_for(files[0]).copy_and_resolve_references()
    config.data.train = tuple({"path": str(path), "weight": 1.0} for path in files)
    batch = training_rows(config, 8).batch(0, 8)
    counted = batch["label_sources"][batch["label_weights"] > 0]
    assert set(counted) == {0, 1}
    # A sample is of one source.
    owners = np.take_along_axis(batch["segment_ids"], batch["label_positions"], axis=1)
    for row in range(8):
        for sample in set(owners[row][batch["label_weights"][row] > 0]):
            mine = (owners[row] == sample) & (batch["label_weights"][row] > 0)
            assert len(set(batch["label_sources"][row][mine])) == 1
