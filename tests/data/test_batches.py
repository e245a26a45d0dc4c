"""Reading: every piece once a visit, whatever the layout, the processes, the workers and the interruptions."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore

from mlm_pytorch.data.batches import FLAT, PADDED, Position, Reader, count_tokens
from mlm_pytorch.data.packing import build_pack, join_packs
from mlm_pytorch.data.padding import build_padded
from mlm_pytorch.data.prefetch import prefetch
from mlm_pytorch.data.store import Manifest, SplitWriter, TokenStore

LAYOUTS = {"flat": FLAT, "padded": PADDED}
layouts = st.sampled_from(list(LAYOUTS))
some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=80)


def reader(store, layout="flat", **changes) -> Reader:
    options = {"capacity": 64, "seed": 3, "longest": 42, "num_streams": 4, "layout": LAYOUTS[layout]}
    return Reader(store, **options | changes)


def content(pack):
    return pack.input_ids.tolist(), pack.pieces.tolist(), pack.visits.tolist()


def served(packs) -> Counter:
    pairs = Counter()
    for pack in packs:
        pairs.update((p, v) for p, v in zip(pack.pieces.tolist(), pack.visits.tolist(), strict=True) if p >= 0)
    return pairs


def as_json(position: Position) -> dict:
    return json.loads(json.dumps(position.to_json()))


@settings(max_examples=25)
@given(some_lengths, st.integers(0, 1000), layouts, st.integers(1, 5))
def test_what_was_drawn_was_served_once_or_waits(lengths, seed, layout, num_streams):
    """Against the slow reference: the prefixes of the streams, as the order says, one piece at a time."""
    read = reader(ListStore(lengths), layout, seed=seed, num_streams=num_streams)
    packed = served(read.take(13))
    drawn = Counter()
    for stream, cursor in enumerate(read.position.cursors):
        pieces, visits = read.order.serve(stream, np.arange(cursor.drawn))
        drawn.update(zip(pieces.tolist(), visits.tolist(), strict=True))
        waiting = cursor.waiting.serials
        packed.update(zip(pieces[waiting].tolist(), visits[waiting].tolist(), strict=True))
    assert packed == drawn and set(drawn.values()) <= {1}


@settings(max_examples=25)
@given(some_lengths, layouts, st.integers(1, 3), st.integers(1, 4))
def test_every_piece_is_served_exactly_once_in_each_visit(lengths, layout, visits, num_streams):
    """Read until no stream can still hold a piece of the first visits: each was served, and once."""
    read = reader(ListStore(lengths), layout, num_streams=num_streams)
    number, found = visits * len(lengths), Counter()

    def behind() -> bool:
        for stream, cursor in enumerate(read.position.cursors):
            waiting = cursor.waiting.serials
            first = int(waiting[0]) if len(waiting) else cursor.drawn
            if read.order.serve(stream, np.array([first]))[1][0] < visits:
                return True
        return False

    while behind():
        found += served(read.take(num_streams))
    early = {pair: times for pair, times in found.items() if pair[1] < visits}
    assert early == {(piece, visit): 1 for piece in range(len(lengths)) for visit in range(visits)}
    assert len(early) == number


@settings(max_examples=20)
@given(some_lengths, layouts)
def test_a_batch_is_what_build_makes_of_its_pieces(lengths, layout):
    """No piece is cropped or joined to another; a pack's own laws are tested beside it."""
    store = ListStore(lengths)
    build = {"flat": build_pack, "padded": build_padded}[layout]
    for pack in reader(store, layout).take(7):
        real = pack.pieces >= 0
        again = build(store, pack.pieces[real], pack.visits[real], 64)
        assert content(again) == content(pack)
        assert pack.input_ids.size <= 64


@settings(max_examples=30)
@given(some_lengths, layouts, st.integers(0, 20), st.integers(0, 20))
def test_a_resumed_reader_goes_on_as_if_nothing_had_been(lengths, layout, before, after):
    store = ListStore(lengths)
    whole = [content(p) for p in reader(store, layout).take(before + after)]
    first = reader(store, layout)
    assert [content(p) for p in first.take(before)] == whole[:before]
    resumed = reader(store, layout)
    resumed.restore(as_json(first.position))
    assert [content(p) for p in resumed.take(after)] == whole[before:]


@settings(max_examples=25)
@given(
    some_lengths,
    layouts,
    st.integers(1, 6),
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), min_size=1, max_size=3),
)
def test_any_number_of_processes_reads_the_same_batches(lengths, layout, num_streams, patience, sittings):
    """A run in several sittings, each with another number of processes, that do not follow each other's streams."""
    store = ListStore(lengths)
    total = sum(count for _, count in sittings)

    def make(**changes) -> Reader:
        read = reader(store, layout, num_streams=num_streams, **changes)
        read.patience = patience
        return read

    alone = make()
    expected = [content(p) for p in alone.take(total)]
    position = make().position
    got = []
    for world_size, count in sittings:
        ranks = [make(rank=r, world_size=world_size) for r in range(world_size)]
        for rank in ranks:
            rank.restore(as_json(position))
        first = position.next_pack
        shares = [iter([content(p) for p in rank.take(count)]) for rank in ranks]
        got += [next(shares[number % world_size]) for number in range(first, first + count)]
        assert all(next(share, None) is None for share in shares)
        position = Position.merge([rank.position for rank in ranks])
    assert got == expected
    assert position.to_json() == alone.position.to_json()


@settings(max_examples=25)
@given(some_lengths, st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_size_of_a_micro_batch_does_not_change_what_is_read(lengths, sizes):
    store = ListStore(lengths)
    expected = join_packs(list(reader(store).take(sum(sizes))))
    read, position = reader(store), None
    micro_batches = []
    for size in sizes:
        if position is not None:  # another sitting, with another size
            read = reader(store)
            read.restore(position)
        micro_batches.append(join_packs(list(read.take(size))))
        position = as_json(read.position)
    assert [len(m.input_ids) for m in micro_batches] == [64 * size for size in sizes]
    assert content(join_packs(micro_batches)) == content(expected)


@settings(max_examples=20)
@given(some_lengths, layouts, st.integers(1, 4))
def test_any_number_of_workers_builds_the_same_batches(lengths, layout, workers):
    store = ListStore(lengths)
    expected = [content(p) for p in reader(store, layout).take(12)]
    read = reader(store, layout)
    assert [content(p) for p in prefetch(read.choose(12), read.build, workers=workers)] == expected


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(5, 39), min_size=1, max_size=60), min_size=1, max_size=30), layouts)
def test_pieces_hold_every_token_of_every_document_once(tmp_path_factory, documents, layout):
    """From documents through a real store to batches and back."""
    folder = tmp_path_factory.mktemp("store")
    writer = SplitWriter(folder, "train", SPECIAL.num_tokens, max_piece=20, shard_tokens=100)
    lengths = np.array([len(document) for document in documents])
    writer.add(np.concatenate([np.array(document) for document in documents]), lengths)
    Manifest("uint16", 22, SPECIAL, "none", {"train": writer.finish()}).write(folder)
    store = TokenStore.open(folder)
    read = reader(store, layout, longest=store.seq_len)
    found: dict[int, list[int]] = {}
    while len(found) < len(store):
        for pack in read.take(4):
            flat = pack.flat() if layout == "padded" else pack
            parts = np.split(flat.input_ids, flat.cu_seqlens[1:-1])
            for ids, piece, visit in zip(parts, pack.pieces.tolist(), pack.visits.tolist(), strict=False):
                if piece >= 0 and visit == 0:
                    assert piece not in found and ids[0] == 2 and ids[-1] == 3
                    found[piece] = ids[1:-1].tolist()
    tokens = [token for piece in range(len(store)) for token in found[piece]]
    assert tokens == [token for document in documents for token in document]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seeds(layout):
    store = ListStore([10, 20, 30] * 40)
    packs = [[content(p) for p in reader(store, layout, seed=seed).take(20)] for seed in (0, 1, 0)]
    assert packs[0] == packs[2] and packs[0] != packs[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resuming_far_into_a_run_is_as_quick_as_at_the_start(layout):
    """Neither the time nor the saved position knows how many batches there were."""
    store = ListStore([19] * 300)
    read = reader(store, layout)
    list(read.take(8))
    position = as_json(read.position)
    far = 10**12 * 4
    position["drawn"] = [drawn + far for drawn in position["drawn"]]
    position["waiting"] = [[serial + far for serial in serials] for serials in position["waiting"]]
    position["next_pack"] = far
    resumed = reader(store, layout)
    resumed.restore(position)
    pack = next(resumed.take(1))
    assert pack.num_tokens > 0 and pack.visits.max() > 10**9
    assert len(json.dumps(resumed.position.to_json())) < 10_000


class Unread(ListStore):
    """A store that nobody may look into."""

    def piece(self, index):
        raise AssertionError("a piece was read")

    def lengths(self, indices):
        raise AssertionError("lengths were read")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resuming_reads_nothing_of_the_store(layout):
    read = reader(ListStore([10] * 300), layout)
    list(read.take(9))
    reader(Unread([10] * 300), layout).restore(as_json(read.position))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [[5], [40], [1, 40], [3, 4, 5], [10] * 7])
def test_a_store_smaller_than_a_pack_is_repeated_within_it(lengths, layout):
    """Each visit once, and no piece far ahead of another."""
    read = reader(ListStore(lengths), layout, capacity=512, num_streams=None)
    packs = list(read.take(40))
    pairs = served(packs)
    assert set(pairs.values()) == {1}
    visits = Counter(piece for piece, _ in pairs)
    assert len(visits) == len(lengths)
    slack = 64 * read.order.num_streams / len(lengths)  # what may wait
    assert max(visits.values()) - min(visits.values()) <= 1 + slack
    tokens = sum(pack.num_tokens for pack in packs)
    assert tokens > 0.7 * sum(pack.input_ids.size for pack in packs)


def test_a_store_of_a_few_packs_is_read_through_before_it_is_read_again():
    """100 pieces, 10 to a pack, dealt to 16 streams: each ten packs are an epoch."""
    packs = list(Reader(ListStore([8] * 100), 100, seed=0, longest=10).take(160))
    for epoch in range(16):
        pairs = served(packs[10 * epoch : 10 * epoch + 10])
        assert pairs == {(piece, epoch): 1 for piece in range(100)}


def test_positions_of_processes_at_different_batches_do_not_merge():
    ranks = [reader(ListStore([10] * 20), rank=rank, world_size=2) for rank in range(2)]
    list(ranks[0].take(2))
    with pytest.raises(ValueError, match=r"different batches \[0, 2\]; save all after the same step"):
        Position.merge([rank.position for rank in ranks])


def test_a_position_belongs_to_a_store_and_its_streams():
    read = reader(ListStore([10] * 20))
    list(read.take(5))
    with pytest.raises(ValueError, match="the saved position has 4 streams, this run 8; keep them equal"):
        reader(ListStore([10] * 20), num_streams=8).restore(as_json(read.position))
    with pytest.raises(ValueError, match="the saved position is in a store of 20 pieces, this one has 21"):
        reader(ListStore([10] * 21)).restore(as_json(read.position))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_streams": 0}, "num_streams 0 is too small; give at least 1"),
        ({"rank": 3, "world_size": 3}, "rank 3 is not among the 3 processes; count from 0"),
        ({"rank": 0, "world_size": 0}, "rank 0 is not among the 0 processes; count from 0"),
        ({"capacity": 30}, "a pack of 30 tokens cannot hold a piece of 42; raise --pack-tokens or lower --seq-len"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        reader(ListStore([10] * 20), **changes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_piece_may_be_as_long_as_a_pack(layout):
    (batch,) = reader(ListStore([40]), layout, capacity=42).take(1)
    assert batch.num_tokens == batch.input_ids.size == 42


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_tokens_are_those_of_the_first_batches(layout):
    """From wherever a process stands, whatever its rank; it goes on as if nobody had asked."""
    store = ListStore([7, 30, 5] * 30)
    first = list(reader(store, layout).take(9))
    read = reader(store, layout, rank=1, world_size=2)
    early = [content(p) for p in read.take(3)]
    assert read.mean_tokens(9) == sum(pack.num_tokens for pack in first) / 9
    assert early + [content(p) for p in read.take(6)] == [content(p) for p in first[1::2]]


def test_an_empty_store_is_an_error():
    with pytest.raises(ValueError, match="the store holds no pieces"):
        reader(ListStore([]))


def test_count_tokens_samples_evenly():
    store = ListStore([3, 20, 7] * 100)
    counts = np.bincount(np.concatenate(store.pieces), minlength=40)
    assert count_tokens(store).tolist() == counts.tolist()
    some = count_tokens(store, max_pieces=64)
    assert some.sum() == sum(map(len, store.pieces[:32] + store.pieces[-32:]))
    assert 0 < count_tokens(store, max_pieces=5).sum() < counts.sum()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_piece_by_itself_is_no_longer_than_it_is(layout):
    store = ListStore([7, 30, 5])
    batch = reader(store, layout).first_piece()
    assert batch.num_tokens == batch.input_ids.size == 7 + 2
    assert batch.pieces.tolist() == [0]
