"""The plan: which samples stand in which row, the same on every machine and after every stop."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.packing import Capacity
from jaxvlm.data.plan import Plan
from jaxvlm.data.sequence import Sample
from jaxvlm.data.views import RandomViews, keep_views
from jaxvlm.errors import UserError

LATENTS = 4


def sample(question: int, answer: int, set_id: int, record: int) -> Sample:
    parts = (np.zeros(n, np.int32) for n in (question, 1, answer))
    return Sample(*parts, record, set_id, views=9)


def samples(sizes) -> list[Sample]:
    return [sample(*size, i) for i, size in enumerate(sizes)]


def plan(items, sources=None, *, views=3, keep=(), capacity=None, dropout=0.3, seed=0) -> Plan:
    return Plan(
        items,
        sources or [(1.0, range(len(items)))],
        capacity or Capacity(64, 3, 999, 20, 4),
        lambda shown, _: shown + LATENTS,
        RandomViews(most=views, dropout=dropout, keep_first=keep),
        seed,
    )


def epoch_rows(made: Plan, epochs: int) -> list[list]:
    count = sum(made.rows_in_epoch(epoch) for epoch in range(epochs))
    return [made.row(index) for index in range(count)]


def drawn(rows) -> Counter:
    return Counter(index for row in rows for group in row for index in group.samples)


SIZES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=60
)
CAPACITIES = st.builds(
    Capacity,
    tokens=st.integers(50, 200),
    sets=st.integers(1, 4),
    views=st.integers(3, 12),
    labels=st.integers(9, 40),
    questions_per_set=st.integers(1, 6),
)


@settings(max_examples=80, deadline=None)
@given(SIZES, CAPACITIES, st.floats(0, 0.99), st.integers(0, 99))
def test_every_sample_stands_in_one_place_and_rows_hold_what_they_can(sizes, capacity, dropout, s):
    items = samples(sizes)
    made = plan(items, capacity=capacity, dropout=dropout, seed=s)
    rows = epoch_rows(made, 1)
    assert drawn(rows) == Counter(range(len(items)))
    for row in rows:
        assert 1 <= len(row) <= capacity.sets
        length = labels = 0
        for group in row:
            assert 1 <= len(group.samples) <= capacity.questions_per_set
            assert len({items[i].set_id for i in group.samples}) == 1
            assert len(set(group.samples)) == len(group.samples)
            assert list(group.views) == sorted(set(group.views)) and group.views
            length += sum(items[i].length(LATENTS + len(group.views)) for i in group.samples)
            labels += sum(len(items[i].answer) for i in group.samples)
        assert length <= capacity.tokens and labels <= capacity.labels
        assert sum(len(group.views) for group in row) <= capacity.views
        # An image set is encoded once a row.
        assert len({items[group.samples[0]].set_id for group in row}) == len(row)


def test_questions_of_a_set_share_its_encoding():
    items = samples([(5, 1, i // 4) for i in range(40)])
    rows = epoch_rows(plan(items, capacity=Capacity(1000, 1, 999, 50, 4)), 1)
    assert len(rows) == 10 and all(len(row[0].samples) == 4 for row in rows)


@pytest.mark.parametrize(
    ("per_set", "sets", "questions"),
    [(40, 3, 10), (40, 4, 8), (9, 4, 10), (1, 30, 1), (200, 3, 12), (27, 3, 10)],
)
def test_rows_are_well_filled(per_set, sets, questions):
    """Where places for image sets allow it, rows are evenly full, and hardly one is left over."""
    rng = np.random.default_rng(0)
    items = samples([(int(n), 2, i // per_set) for i, n in enumerate(rng.integers(145, 190, 4000))])
    made = plan(items, capacity=Capacity(4096, sets, 999, 200, questions), dropout=0.0)
    fill = [sum(made.size(group)[0] for group in row) / 4096 for row in epoch_rows(made, 1)]
    assert np.mean(fill) > 0.95
    assert np.quantile(fill, 0.03) > 0.9


@pytest.mark.parametrize(("sets", "per_set"), [(3, 10), (3, 12), (6, 40)])
def test_places_for_views_bind_as_places_for_image_sets_do(sets, per_set):
    """With places for two whole sets' views rows hold two sets, however many more they could."""
    items = samples([(30, 2, i // per_set) for i in range(40 * per_set)])

    def rows_of(sets: int, views: int) -> list:
        made = plan(items, capacity=Capacity(4096, sets, views, 200, 10), dropout=0.0)
        return epoch_rows(made, 1)

    found, expected = rows_of(sets, 6), rows_of(2, 99)
    assert len(found) <= 1.05 * len(expected)
    assert sum(map(len, found)) <= 1.05 * sum(map(len, expected))


def test_rows_of_an_epoch_are_counted_for_other_places_for_views():
    items = samples([(30, 2, i // 10) for i in range(400)])
    made = [plan(items, capacity=Capacity(4096, 3, views, 200, 10)) for views in (5, 9)]
    counts = [each.rows_in_epoch(0) for each in made]
    assert counts[0] > counts[1]
    for each in made:
        assert [each.rows_with(views) for views in (5, 9)] == counts


def test_places_for_image_sets_bind_where_sets_are_small():
    """Sets of one question each: all places are taken, and no more rows made than they need."""
    items = samples([(5, 2, i) for i in range(400)])
    rows = epoch_rows(plan(items, capacity=Capacity(800, 4, 999, 100, 8)), 1)
    assert len(rows) == 100 and all(len(row) == 4 for row in rows)


def test_labels_bind_where_answers_are_long():
    items = samples([(5, 9, i // 10) for i in range(400)])
    made = plan(items, capacity=Capacity(8000, 10, 999, 90, 10))
    labels = [sum(made.size(group)[1] for group in row) for row in epoch_rows(made, 1)]
    assert max(labels) <= 90 and np.mean(labels) > 80


def test_a_mixture_holds_over_many_draws():
    sizes = [(5, 2, i // 5) for i in range(700)]
    roomy = Capacity(1000, 20, 999, 400, 10)
    made = plan(samples(sizes), [(0.7, range(300)), (0.3, range(300, 700))], capacity=roomy)
    counts = drawn(epoch_rows(made, 29))
    total = counts.total()
    assert total > 20_000
    assert abs(sum(counts[i] for i in range(300)) / total - 0.7) < 0.01
    for part in (range(300), range(300, 700)):
        # Each sample of a source comes once in every pass over it.
        assert max(counts[i] for i in part) - min(counts[i] for i in part) <= 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 5)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_every_sample_of_a_source_comes_once_a_pass(sources, seed):
    starts = np.cumsum([0] + [count for count, _ in sources]).tolist()
    parts = [(w, range(a, a + n)) for a, (n, w) in zip(starts, sources, strict=False)]
    made = plan(samples([(4, 2, i // 3) for i in range(starts[-1])]), parts, seed=seed)
    for epochs in (1, 3):
        counts = drawn(epoch_rows(made, epochs))
        for _, part in parts:
            assert max(counts[i] for i in part) - min(counts[i] for i in part) <= 1


def test_a_sample_that_is_drawn_often_stands_in_as_many_rows():
    """Nine tenths of the draws go to one sample: never twice into a row, and none is lost."""
    made = plan(
        samples([(5, 1, i) for i in range(400)]),
        [(9.0, range(1)), (1.0, range(1, 400))],
        capacity=Capacity(200, 4, 999, 50, 50),
    )
    rows = epoch_rows(made, 1)
    assert drawn(rows)[0] == 360 == sum(any(0 in g.samples for g in row) for row in rows)


def test_a_single_image_set_still_makes_rows():
    rows = epoch_rows(plan(samples([(5, 1, 0) for _ in range(50)])), 1)
    assert all(len(row) == 1 and len(row[0].samples) <= 4 for row in rows)


def test_groups_are_changed_each_by_a_seed_of_its_own(items):
    groups = [group for row in epoch_rows(plan(items), 2) for group in row]
    assert len({group.seed for group in groups}) > 0.95 * len(groups)


@pytest.fixture(scope="module")
def items() -> list[Sample]:
    rng = np.random.default_rng(1)
    return samples([(int(n), 2, i // 3) for i, n in enumerate(rng.integers(3, 20, 60))])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.integers(0, 9))
def test_any_row_can_be_read_in_any_order(items, order, seed):
    in_order = plan(items, seed=seed)
    expected = [in_order.row(index) for index in range(61)]
    other = plan(items, seed=seed)
    assert [other.row(index) for index in order] == [expected[index] for index in order]


def test_seeds_and_epochs_differ(items):
    one, other = (epoch_rows(plan(items, seed=seed), 2) for seed in (0, 1))
    assert one != other
    first = plan(items).rows_in_epoch(0)
    assert one[:first] != one[first:]
    assert drawn(one[:first]) == drawn(one[first:])


def test_threads_read_the_same_rows(items):
    single = plan(items)
    expected = [single.row(index) for index in range(80)]
    together = plan(items)
    order = np.random.default_rng(0).permutation(np.tile(np.arange(80), 3))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(together.row, order.tolist()))
    assert read == [expected[index] for index in order]


def test_a_mixture_keeps_its_shares():
    """70% from the smaller source: its samples come oftener, each as often as its fellows."""
    made = plan(samples([(5, 2, i) for i in range(100)]), [(0.7, range(40)), (0.3, range(40, 100))])
    counts = drawn(epoch_rows(made, 10))
    small, large = ([counts[i] for i in part] for part in (range(40), range(40, 100)))
    assert (sum(small), sum(large)) == (700, 300)
    assert set(small) <= {17, 18} and set(large) == {5}


def test_every_epoch_keeps_the_shares():
    made = plan(samples([(5, 2, i) for i in range(30)]), [(2, range(10)), (1, range(10, 30))])
    for epoch in range(4):
        first = sum(made.rows_in_epoch(e) for e in range(epoch))
        rows = [made.row(first + i) for i in range(made.rows_in_epoch(epoch))]
        counts = drawn(rows)
        assert abs(sum(counts[i] for i in range(10)) - 20) <= 1
        assert counts.total() == pytest.approx(30, abs=1)


def test_view_dropout_is_drawn_per_group_and_keeps_what_must_stay():
    # Two questions of each set; in every other set one of them is an action.
    items = samples([(5, 1, i // 2) for i in range(400)])
    keep = {s.set_id for s in items[1::4]}
    roomy = Capacity(5000, 20, 999, 100, 4)
    made = plan(items, keep=keep, views=4, dropout=0.7, capacity=roomy)
    groups = [group for row in epoch_rows(made, 1) for group in row]
    kept = {items[group.samples[0]].set_id: group.views for group in groups}
    assert len(groups) == len(kept) == 200
    assert all(0 in kept[i] for i in range(0, 200, 2))
    assert not all(0 in kept[i] for i in range(1, 200, 2))
    assert len(set(kept.values())) > 8


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
    st.integers(0, 999),
)
def test_kept_views(available, most, dropout, keep_first, seed):
    kept = keep_views(available, most, dropout, keep_first, np.random.default_rng(seed))
    assert kept and kept == sorted(set(kept))
    assert max(kept) < min(available, most)
    assert 0 in kept or not keep_first
    if dropout == 0:
        assert len(kept) == min(available, most)


def test_the_share_of_dropped_views():
    rng = np.random.default_rng(0)
    kept = Counter(v for _ in range(3000) for v in keep_views(8, 8, 0.3, False, rng))
    assert all(abs(kept[view] / 3000 - 0.7) < 0.03 for view in range(8))


def test_a_row_too_small_for_one_sample_is_refused():
    with pytest.raises(UserError, match=r"data\.row_labels=8 is less than .*9 tokens"):
        plan(samples([(5, 9, 0)]), capacity=Capacity(100, 1, 999, 8, 1))
    with pytest.raises(UserError, match=r"data\.row_length=50 is less than .*65 tokens"):
        plan(samples([(56, 2, 0)]), capacity=Capacity(50, 1, 999, 8, 1))
