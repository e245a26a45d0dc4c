"""Packs: every piece whole and once, close to full, framed, longest first."""

from itertools import count

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore

from mlm_pytorch.data.packing import LOOKAHEAD, Waiting, build_pack, sequential_packs, take_pack
from mlm_pytorch.tokens import SpecialTokens

UNFRAMED = SpecialTokens(100, mask_token_id=4, pad_token_id=0, ids=(0, 4))


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


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(50, 200))
def test_take_pack_serves_each_once_and_none_waits_long(lengths, capacity):
    serials = count()
    waiting: list[Waiting] = []

    def draw() -> Waiting:
        serial = next(serials)
        return Waiting(serial, lengths[serial % len(lengths)])

    served: list[int] = []
    for number in range(6):
        oldest = waiting[0].serial if waiting else 0
        taken = take_pack(waiting, capacity, draw)
        assert sum(w.length for w in taken) <= capacity
        assert taken[0].serial == oldest, "the oldest opens the pack"
        assert len(waiting) <= LOOKAHEAD
        room = capacity - sum(w.length for w in taken)
        assert all(w.length > room for w in waiting), "something that waits would still fit"
        served += [w.serial for w in taken]
        assert len(set(served)) == len(served), f"pack {number} serves a piece again"
    assert sorted(served + [w.serial for w in waiting]) == list(range(next(serials)))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(0, 20),
    st.sampled_from([SPECIAL, UNFRAMED]),
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


def test_fill_of_text_like_lengths():
    generator = np.random.default_rng(0)
    lengths = np.minimum(256, 5 + generator.geometric(0.02, 20_000))
    lengths[generator.random(20_000) < 0.34] = 256
    serials, waiting, filled = count(), [], []
    for _ in range(300):
        taken = take_pack(waiting, 8192, lambda: Waiting(s := next(serials), int(lengths[s % 20_000])))
        filled.append(sum(w.length for w in taken) / 8192)
    assert np.mean(filled) > 0.998
