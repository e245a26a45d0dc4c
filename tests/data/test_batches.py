"""Order without state: every piece once an epoch, whatever the processes and interruptions."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from list_store import ListStore

from mlm_pytorch.data.batches import Order, Reader, count_tokens, permute


def reader(store, **changes) -> Reader:
    return Reader(store, **{"capacity": 64, "seed": 3, "longest": 42, "num_streams": 4} | changes)


def content(pack):
    return pack.input_ids.tolist(), pack.pieces.tolist(), pack.visits.tolist()


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_at_sizes_that_no_list_could_hold():
    size = 10**12 + 39
    got = permute(np.arange(10**12, 10**12 + 39), size, key=5)
    assert len(set(got.tolist())) == 39 and (got >= 0).all() and (got < size).all()


@pytest.mark.parametrize("size", [1000, 4096, 5000])
def test_permute_looks_uniform(size):
    """Rank correlation with the identity and with a neighbour's place are those of a uniform permutation."""
    correlations, steps = [], []
    for key in range(200):
        places = permute(np.arange(size), size, key).astype(float)
        correlations.append(np.corrcoef(np.arange(size), places)[0, 1])
        steps.append(np.corrcoef(places[:-1], places[1:])[0, 1])
    for values in (correlations, steps):
        standard_error = (size - 1) ** -0.5 / 200**0.5
        assert abs(np.mean(values)) < 4 * standard_error + 1 / size
        assert 0.8 < np.std(values) * (size - 1) ** 0.5 < 1.2


def test_where_an_index_lands_is_uniform_over_keys():
    places = [int(permute(np.array([7]), 50, key)[0]) for key in range(20_000)]
    counts = np.bincount(places, minlength=50)
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 49 + 4 * (2 * 49) ** 0.5


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**32))
def test_order_serves_each_piece_once_an_epoch(num_pieces, num_streams, seed):
    order = Order(num_pieces, seed, num_streams)
    served = Counter()
    for stream in range(num_streams):
        pieces, visits = order.serve(stream, 0, 3 * num_pieces)
        served.update(zip(visits.tolist(), pieces.tolist(), strict=True))
    complete = [v for v in range(3) if num_streams * 3 * num_pieces >= (v + 1) * num_pieces]
    for visit in complete:
        assert [served[visit, piece] for piece in range(num_pieces)] == [1] * num_pieces


def test_order_differs_between_epochs_and_seeds():
    first = [Order(500, seed, 1).serve(0, start, 500)[0].tolist() for seed, start in ((0, 0), (0, 500), (1, 0))]
    assert len({tuple(x) for x in first}) == 3
    assert first[0] == Order(500, 0, 1).serve(0, 0, 500)[0].tolist()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(0, 1000))
def test_packs_hold_what_the_order_says(lengths, seed):
    """Against the slow reference: what was drawn is what was packed, plus what waits."""
    store = ListStore(lengths)
    read = reader(store, seed=seed)
    packed = Counter()
    for pack in read.take(13):
        packed.update((p, v) for p, v in zip(pack.pieces.tolist(), pack.visits.tolist(), strict=True) if p >= 0)
    drawn = Counter()
    for stream, cursor in enumerate(read.position.cursors):
        pieces, visits = read.order.serve(stream, 0, cursor.drawn)
        drawn.update(zip(pieces.tolist(), visits.tolist(), strict=True))
        for waiting in cursor.waiting:
            packed[int(pieces[waiting.serial]), int(visits[waiting.serial])] += 1
    assert packed == drawn


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(0, 20), st.integers(0, 20))
def test_a_resumed_reader_goes_on_as_if_nothing_had_been(lengths, before, after):
    store = ListStore(lengths)
    whole = [content(p) for p in reader(store).take(before + after)]
    first = reader(store)
    assert [content(p) for p in first.take(before)] == whole[:before]
    resumed = reader(store)
    resumed.restore(first.position.to_json())
    assert [content(p) for p in resumed.take(after)] == whole[before:]


@given(st.lists(st.integers(1, 40), min_size=5, max_size=80), st.sampled_from([1, 2, 4]))
def test_any_number_of_processes_reads_the_same_packs(lengths, world_size):
    store = ListStore(lengths)
    alone = [content(p) for p in reader(store).take(24)]
    ranks = [[content(p) for p in reader(store, rank=r, world_size=world_size).take(24)] for r in range(world_size)]
    streams = [iter(rank) for rank in ranks]
    assert [next(streams[number % 4 % world_size]) for number in range(24)] == alone


def test_resuming_far_into_a_run_is_as_quick_as_at_the_start():
    store = ListStore([10, 20, 30] * 100)
    read = reader(store)
    position = read.position.to_json()
    position["drawn"] = [10**12] * 4
    position["waiting"] = [[10**12 - 1]] * 4
    position["next_pack"] = 10**12
    read.restore(position)
    pack = next(iter(read.take(1)))
    assert pack.num_tokens > 0 and pack.visits.max() > 10**9


def test_position_is_plain_data_and_streams_must_agree():
    store = ListStore([10] * 20)
    read = reader(store)
    list(islice(read.take(5), 5))
    with pytest.raises(ValueError, match="the saved position has 4 streams, this run 8"):
        reader(store, num_streams=8).restore(read.position.to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 3}, "4 streams cannot be dealt to 3 processes; use one of 1, 2, 4"),
        ({"capacity": 30}, "a pack of 30 tokens cannot hold a piece of 42; raise --pack-tokens or lower --seq-len"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        reader(ListStore([10] * 20), **changes)


def test_an_empty_store_is_an_error():
    with pytest.raises(ValueError, match="the store holds no pieces"):
        reader(ListStore([]))


def test_count_tokens_samples_evenly():
    store = ListStore([3, 20, 7] * 10)
    counts = np.bincount(np.concatenate(store.pieces), minlength=40)
    assert count_tokens(store).tolist() == counts.tolist()
    assert 0 < count_tokens(store, max_pieces=5).sum() < counts.sum()
