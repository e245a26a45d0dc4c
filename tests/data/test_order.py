"""The order of reading: every piece once a visit, uniformly shuffled, computed from numbers alone."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data.order import Order, permute

U64 = (1 << 64) - 1


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_at_sizes_that_no_list_could_hold():
    size = 10**12 + 39
    got = permute(np.arange(10**12, 10**12 + 39), size, key=5)
    assert len(set(got.tolist())) == 39 and (got >= 0).all() and (got < size).all()


@given(st.integers(1, 100), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_a_key_for_each_index_does_what_one_key_does(size, several):
    index = np.arange(len(several)) % size
    got = permute(index, size, np.array(several, dtype=np.uint64)).tolist()
    assert got == [int(permute(np.array([i]), size, key)[0]) for i, key in zip(index.tolist(), several, strict=True)]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_a_few_are_equally_likely(size):
    number = 20_000
    places = np.stack([permute(np.full(number, i), size, keys(number, size)) for i in range(size)], axis=1)
    found = Counter(map(tuple, places.tolist()))
    orders = list(itertools.permutations(range(size)))
    expected = number / len(orders)
    chi_square = sum((found[order] - expected) ** 2 / expected for order in orders)
    freedom = len(orders) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


SIZES = [63, 64, 65, 1000, 1023, 1024, 1025, 4095, 4096, 4097]


@pytest.mark.parametrize("size", SIZES)
def test_rank_correlations_are_those_of_a_uniform_permutation(size):
    """With storage order, and with the neighbours' places; their mean over keys within 3 standard errors of theirs."""
    storage, number = np.arange(size), 100
    correlations = {"storage": [], "neighbour": [], "fourth": []}
    for key in keys(number, size):
        places = permute(storage, size, int(key))
        correlations["storage"].append(np.corrcoef(storage, places)[0, 1])
        correlations["neighbour"].append(np.corrcoef(places[:-1], places[1:])[0, 1])
        correlations["fourth"].append(np.corrcoef(places[:-4], places[4:])[0, 1])
    for name, values in correlations.items():
        expected = 0 if name == "storage" else -1 / (size - 1)
        assert abs(np.mean(values) - expected) < 3 * ((size - 1) * number) ** -0.5, name
        assert 0.75 < np.std(values) * (size - 1) ** 0.5 < 1.25, name


@pytest.mark.parametrize("size", SIZES)
def test_a_source_meets_itself_in_a_window_as_often_as_by_chance(size):
    """Neighbours in storage share a source, as pieces of one document do; windows of 16 in reading order."""
    each, window, number = 8, 16, 100
    source = np.arange(size) // each
    counts = np.bincount(source)
    chance = (counts * (counts - 1)).sum() / (size * (size - 1))
    pairs = window * (window - 1) / 2 * (size // window)
    found = []
    for key in keys(number, size):
        reading = source[permute(np.arange(size), size, int(key))]
        rows = np.sort(reading[: size // window * window].reshape(-1, window), axis=1)
        same = sum(int((rows[:, gap:] == rows[:, :-gap]).sum()) for gap in range(1, window))
        found.append(same)
    standard_error = (pairs * chance / number) ** 0.5
    assert abs(np.mean(found) - pairs * chance) < 3 * standard_error


def test_where_an_index_lands_is_uniform_over_keys():
    places = permute(np.full(20_000, 7), 50, keys(20_000))
    chi_square = ((np.bincount(places, minlength=50) - 400) ** 2 / 400).sum()
    assert chi_square < 49 + 4 * (2 * 49) ** 0.5


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 9), st.integers(-5, 2**70))
def test_every_piece_is_served_once_a_visit(num_pieces, num_streams, block, seed):
    """The union of the streams is the endless sequence, each number once; a visit is a permutation of the store."""
    order = Order(num_pieces, seed, num_streams, block)
    served = Counter()
    count = -(-3 * num_pieces // (block * num_streams)) * block  # serials that hold the first three visits
    for stream in range(num_streams):
        pieces, visits = order.serve(stream, np.arange(count))
        served.update(zip(visits.tolist(), pieces.tolist(), strict=True))
    for visit in range(3):
        assert [served[visit, piece] for piece in range(num_pieces)] == [1] * num_pieces
    assert set(served.values()) == {1}


def plain_order(order: Order, stream: int, serial: int) -> tuple[int, int]:
    """The documented order in plain integers, a number at a time."""
    step = 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x + step) & U64
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & U64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & U64
        return x ^ x >> 31

    rounds, within = divmod(serial, order.block)
    number = (rounds * order.num_streams + stream) * order.block + within
    visit, x = divmod(number, order.num_pieces)
    key = mix(order.seed & U64 ^ mix(visit))
    bits = max(6, (order.num_pieces - 1).bit_length())
    while True:
        for turn in range(8):
            x = (x + mix(key + 2 * turn * step)) * (mix(key + (2 * turn + 1) * step) | 1) % 2**bits
            x ^= x >> (bits + 1) // 2
        if x < order.num_pieces:
            return x, visit


@given(
    st.integers(1, 10**7),
    st.integers(-5, 2**70),
    st.integers(1, 20),
    st.integers(1, 99),
    st.lists(st.integers(0, 10**9), max_size=5),
)
def test_the_order_is_the_same_in_every_version(num_pieces, seed, num_streams, block, serials):
    """A run that another version goes on with has drawn what it says; another order would repeat and omit pieces."""
    order, stream = Order(num_pieces, seed, num_streams, block), num_streams - 1
    pieces, visits = order.serve(stream, np.array(serials, dtype=np.int64))
    expected = [plain_order(order, stream, serial) for serial in serials]
    assert list(zip(pieces.tolist(), visits.tolist(), strict=True)) == expected
    assert order.visits(stream, np.array(serials, dtype=np.int64)).tolist() == visits.tolist()


@given(st.integers(1, 60), st.lists(st.integers(0, 10**6), max_size=9))
def test_any_serials_may_be_asked_for(num_pieces, serials):
    order = Order(num_pieces, 0, 4, block=3)
    pieces, visits = order.serve(2, np.array(serials, dtype=np.int64))
    each = [order.serve(2, np.array([serial])) for serial in serials]
    assert pieces.tolist() == [int(p[0]) for p, _ in each] and visits.tolist() == [int(v[0]) for _, v in each]


def test_order_differs_between_epochs_and_seeds():
    def serve(seed, start):
        return Order(500, seed, 1).serve(0, np.arange(start, start + 500))[0].tolist()

    assert len({tuple(x) for x in (serve(0, 0), serve(0, 500), serve(1, 0))}) == 3
    assert serve(0, 0) == serve(0, 0)
