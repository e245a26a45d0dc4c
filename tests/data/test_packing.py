"""Packs: every piece whole and once, close to full, framed, longest first."""

from itertools import count

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore

from mlm_pytorch.data.packing import (
    LOOKAHEAD,
    NOTHING,
    Waiting,
    build_pack,
    join_packs,
    sequential_packs,
    take_pack,
)
from mlm_pytorch.tokens import SpecialTokens

UNFRAMED = SpecialTokens(100, mask_token_id=4, pad_token_id=0, ids=(0, 4))
FRAMED_TWICE = SpecialTokens(100, mask_token_id=4, pad_token_id=0, ids=(0, 1, 2, 3, 4), prefix=(2, 1), suffix=(1, 3))


def unpack(pack, special: SpecialTokens) -> dict[int, list[int]]:
    """The pieces of a pack without framing, by their index, and a check of everything around them."""
    found = {}
    borders = pack.cu_seqlens.tolist()
    assert borders[0] == 0 and borders[-1] == len(pack.input_ids)
    for start, end, index in zip(borders, borders[1:], pack.pieces.tolist(), strict=False):
        ids = pack.input_ids[start:end].tolist()
        if index < 0:
            assert ids == [special.pad_token_id] * (end - start)
            continue
        assert tuple(ids[: len(special.prefix)]) == special.prefix
        assert tuple(ids[len(ids) - len(special.suffix) :]) == special.suffix
        found[index] = ids[len(special.prefix) : len(ids) - len(special.suffix)]
        assert pack.positions[start:end].tolist() == list(range(end - start))
    return found


def slow_pack(waiting: list[tuple[int, int]], capacity: int, draw) -> list[tuple[int, int]]:
    """The obvious best fit, one (serial, length) at a time; changes the queue."""
    taken, room = [], capacity
    while True:
        while len(waiting) < LOOKAHEAD:
            waiting.append(draw())
        if waiting[0][1] > room:
            break
        taken.append(waiting.pop(0))
        room -= taken[-1][1]
    while fitting := [w for w in waiting if w[1] <= room]:
        taken.append(max(fitting, key=lambda w: (w[1], -w[0])))
        waiting.remove(taken[-1])
        room -= taken[-1][1]
    return taken


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(50, 400))
def test_take_pack_is_best_fit_and_none_waits_long(lengths, capacity):
    serials = count()
    slow_waiting: list[tuple[int, int]] = []

    def draw() -> tuple[int, int]:
        serial = next(serials)
        return serial, lengths[serial % len(lengths)]

    waiting, drawn = NOTHING, 0

    def upcoming(number: int) -> Waiting:
        ahead = np.arange(drawn, drawn + number)
        return Waiting(ahead, ahead, np.array(lengths)[ahead % len(lengths)])

    served: set[int] = set()
    for _ in range(6):
        expected = slow_pack(slow_waiting, capacity, draw)
        oldest = int(waiting.serials[0]) if len(waiting) else 0
        taken, left = take_pack(waiting, capacity, upcoming)
        drawn += len(taken) + len(left) - len(waiting)
        waiting = left
        assert sorted(taken.serials.tolist()) == sorted(serial for serial, _ in expected)
        assert list(zip(waiting.serials.tolist(), waiting.lengths.tolist(), strict=True)) == slow_waiting
        assert oldest in taken.serials, "the oldest opens the pack"
        room = capacity - int(taken.lengths.sum())
        assert room >= 0 and (waiting.lengths > room).all(), "something that waits would still fit"
        assert served.isdisjoint(taken.serials.tolist())
        served.update(taken.serials.tolist())
    assert served | set(waiting.serials.tolist()) == set(range(drawn))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(0, 20),
    st.sampled_from([SPECIAL, UNFRAMED, FRAMED_TWICE]),
)
def test_build_pack_holds_each_piece_whole(lengths, spare, special):
    store = ListStore(lengths, special)
    framing = len(special.prefix) + len(special.suffix)
    capacity = sum(lengths) + framing * len(lengths) + spare
    pack = build_pack(store, np.arange(len(lengths)), np.arange(len(lengths)) * 7, capacity)
    assert len(pack.input_ids) == capacity and pack.num_tokens == capacity - spare
    assert unpack(pack, special) == {i: piece.tolist() for i, piece in enumerate(store.pieces)}
    assert all(v == 7 * i for i, v in zip(pack.pieces.tolist(), pack.visits.tolist(), strict=True) if i >= 0)
    real = pack.lengths[pack.pieces >= 0]
    assert (np.diff(real) <= 0).all(), "longest first"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(42, 90), st.integers(1, 80))
def test_sequential_packs_serve_every_piece_once_in_order(lengths, capacity, limit):
    store = ListStore(lengths)
    order, seen = [], {}
    for pack in sequential_packs(store, capacity, limit):
        found = unpack(pack, SPECIAL)
        order.append(min(found))
        seen |= found
    assert order == sorted(order)
    assert seen == {i: piece.tolist() for i, piece in enumerate(store.pieces[:limit])}


def test_sequential_packs_pass_over_nothing_in_a_store_of_many_pieces():
    """Lengths are asked for some thousands at a time."""
    packs = sequential_packs(ListStore([1] * 9000, UNFRAMED), 500)
    assert np.concatenate([np.sort(pack.pieces) for pack in packs]).tolist() == list(range(9000))


@given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=5))
def test_joined_packs_are_the_packs_one_after_another(groups):
    packs = []
    for number, lengths in enumerate(groups):
        pieces = np.arange(len(lengths))
        packs.append(build_pack(ListStore(lengths), pieces, pieces + number, 150))
    joined = join_packs(packs)
    assert joined.input_ids.tolist() == [i for pack in packs for i in pack.input_ids.tolist()]
    assert joined.positions.tolist() == [i for pack in packs for i in pack.positions.tolist()]
    assert joined.num_tokens == sum(pack.num_tokens for pack in packs)
    for name in ("lengths", "pieces", "visits"):
        assert getattr(joined, name).tolist() == [i for pack in packs for i in getattr(pack, name).tolist()]


def test_fill_of_text_like_lengths():
    generator = np.random.default_rng(0)
    lengths = np.minimum(256, 5 + generator.geometric(0.02, 20_000))
    lengths[generator.random(20_000) < 0.34] = 256
    waiting, drawn, filled = NOTHING, 0, []

    def upcoming(number: int) -> Waiting:
        ahead = np.arange(drawn, drawn + number)
        return Waiting(ahead, ahead, lengths[ahead % 20_000])

    for _ in range(300):
        taken, left = take_pack(waiting, 8192, upcoming)
        drawn += len(taken) + len(left) - len(waiting)
        waiting = left
        filled.append(int(taken.lengths.sum()) / 8192)
    assert np.mean(filled) > 0.998
