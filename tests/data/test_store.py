"""TokenStore: what was written is what is read; what is damaged is named."""

import json
import pickle
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data import store as module
from mlm_pytorch.data.manifest import Manifest
from mlm_pytorch.data.pieces import cut
from mlm_pytorch.data.store import SplitWriter, TokenStore, token_dtype
from mlm_pytorch.tokens import SpecialTokens

SPECIAL = SpecialTokens(100, mask_token_id=4, pad_token_id=0, ids=(0, 1, 2, 3, 4), prefix=(2,), suffix=(3,))


def write_store(
    folder, documents, *, seq_len=10, sources=None, batch=3, shard_tokens=1 << 24, special=SPECIAL, valid=()
):
    """Documents are lists of ids."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, texts in (("train", documents), ("valid", valid)):
        writer = SplitWriter(folder, split, special.num_tokens, seq_len - 2, shard_tokens)
        for start in range(0, len(texts), batch):
            some = texts[start : start + batch]
            ids = np.array(list(chain.from_iterable(some)), dtype=np.uint32)
            lengths = np.array([len(document) for document in some])
            writer.add(ids, lengths, sources and sources[start : start + batch], characters=10, num_bytes=20)
        if texts:
            splits[split] = writer.finish()
    Manifest(token_dtype(special.num_tokens).name, seq_len, special, "f" * 64, splits).write(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    documents = [list(range(5 + i, 5 + i + length)) for i, length in enumerate([3, 8, 9, 20, 1, 16])]
    sources = ["a", None, "b", "b", "c", "ü"]
    return write_store(tmp_path / "store", documents, sources=sources, shard_tokens=20, valid=[[7, 8]])


def test_read_what_was_written(folder):
    store = TokenStore.open(folder)
    assert [store.piece(i).tolist() for i in range(len(store))] == [
        [5, 6, 7],
        list(range(6, 14)),
        list(range(7, 15)),
        [15],
        list(range(8, 16)),
        list(range(16, 24)),
        list(range(24, 28)),
        [9],
        list(range(10, 18)),
        list(range(18, 26)),
    ]
    assert (len(store), store.num_tokens, store.seq_len, store.special) == (10, 57, 10, SPECIAL)
    assert (store.tokenizer_fingerprint, store.tokenizer_folder) == ("f" * 64, folder / "tokenizer")
    assert [store.source(i) for i in range(10)] == ["a", None, *"bbbbbc", "ü", "ü"]
    info = store.manifest.splits["train"]
    assert (info.documents, info.pieces, info.tokens, info.characters, info.bytes) == (6, 10, 57, 20, 40)
    assert [shard.tokens for shard in info.shards] == [20, 20, 17]
    assert TokenStore.open(folder, "valid").piece(0).tolist() == [7, 8]
    store.verify()


def test_a_manifest_that_says_nothing_of_the_text(folder):
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    assert content["splits"]["train"]["text_hash"] is None  # no hashes were given
    for split in content["splits"].values():
        del split["text_hash"]
    path.write_text(json.dumps(content))
    assert TokenStore.open(folder).manifest.splits["train"].text_hash is None


def test_pieces_are_views_of_the_file(folder):
    piece = TokenStore.open(folder).piece(1)
    assert piece.dtype == np.uint16
    assert not piece.flags.owndata
    assert not piece.flags.writeable


def test_fingerprint_tells_pieces_order_and_tokenizer_apart(tmp_path):
    documents = [[1, 2, 3], [4, 5]]
    fingerprints = []
    for number, (content, tokenizer) in enumerate(
        [(documents, "a"), (documents, "a"), (documents[::-1], "a"), ([[1, 2, 3], [4, 6]], "a"), (documents, "b")]
    ):
        folder = write_store(tmp_path / str(number), content)
        change(folder, tokenizer_fingerprint=tokenizer)
        fingerprints.append(TokenStore.open(folder).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


def test_lengths(folder):
    store = TokenStore.open(folder)
    indices = np.array([9, 0, 3, 3, 6])
    assert store.lengths(indices).tolist() == [8, 3, 1, 1, 4] == [store.length(int(i)) for i in indices]
    assert store.lengths([]).tolist() == []
    for index in (-1, 10):
        for ask in (store.piece, store.length, store.source, lambda i: store.lengths([0, i])):
            with pytest.raises(IndexError, match=rf"piece {index} of 10"):
                ask(index)


def test_opening_maps_nothing_and_pickles_small(folder):
    store = TokenStore.open(folder)
    assert store._mapped == [None] * 3
    store.piece(9)
    assert [mapped is not None for mapped in store._mapped] == [False, False, True]
    again = pickle.loads(pickle.dumps(store))
    assert again._mapped == [None] * 3
    assert again.piece(9).tolist() == store.piece(9).tolist()


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=12),
    seq_len=st.integers(3, 30),
    batch=st.integers(1, 5),
    extra=st.integers(0, 40),
    pieces=st.integers(1, 20),
)
def test_every_token_exactly_once_in_order(tmp_path_factory, documents, seq_len, batch, extra, pieces):
    limit = seq_len - 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_PIECES", pieces)
        folder = write_store(
            tmp_path_factory.mktemp("law"), documents, seq_len=seq_len, batch=batch, shard_tokens=limit + extra
        )
    store = TokenStore.open(folder)
    expected = [ids[i : i + limit] for ids in documents for i in range(0, len(ids), limit)]
    assert [store.piece(i).tolist() for i in range(len(store))] == expected
    assert store.lengths(np.arange(len(store))).tolist() == list(map(len, expected))
    for shard in store.manifest.splits["train"].shards:
        assert shard.tokens <= limit + extra
        assert 1 <= shard.pieces <= pieces
    store.verify()


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), max_piece=st.integers(1, 60))
def test_cut(lengths, max_piece):
    pieces = cut(np.array(lengths), max_piece)
    of_document, piece_lengths = pieces.of_document, pieces.lengths
    expected = [(d, min(max_piece, n - i)) for d, n in enumerate(lengths) for i in range(0, n, max_piece)]
    assert list(zip(of_document.tolist(), piece_lengths.tolist(), strict=True)) == expected


def test_ids_take_two_bytes_up_to_65536_tokens(tmp_path):
    for num_tokens, dtype in ((65_536, np.uint16), (65_537, np.uint32)):
        special = SpecialTokens(num_tokens, mask_token_id=4, pad_token_id=0, ids=(0, 4))
        folder = write_store(tmp_path / str(num_tokens), [[num_tokens - 1, 5]], special=special)
        piece = TokenStore.open(folder).piece(0)
        assert piece.dtype == dtype
        assert piece.tolist() == [num_tokens - 1, 5]


def test_long_sources_do_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_SOURCE_BYTES", 1000)
    folder = write_store(tmp_path, [[5]] * 30, sources=["x" * 200] * 30)
    store = TokenStore.open(folder)
    assert len(store.manifest.splits["train"].shards) > 3
    assert store.source(29) == "x" * 200


def test_other_tools_read_the_shards(folder):
    from datasets import load_dataset

    batch = pa.ipc.open_file(pa.memory_map(str(folder / "train-00000.arrow"))).read_all()
    assert batch.schema.field("tokens").type == pa.large_list(pa.uint16())
    assert batch.column("tokens").to_pylist()[0] == [5, 6, 7]
    files = sorted(map(str, folder.glob("train-*.arrow")))
    dataset = load_dataset("arrow", data_files=files, split="train", cache_dir=str(folder / "cache"))
    store = TokenStore.open(folder)
    assert dataset["tokens"][:] == [store.piece(i).tolist() for i in range(len(store))]


def test_polars_and_duckdb_read_the_shards(folder):
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    store = TokenStore.open(folder)
    expected = [store.piece(i).tolist() for i in range(len(store))]
    files = sorted(map(str, folder.glob("train-*.arrow")))
    frame = polars.concat([polars.read_ipc(file) for file in files])
    assert frame["tokens"].to_list() == expected
    assert frame["source"].to_list() == [store.source(i) for i in range(len(store))]
    shards = pa.concat_tables([pa.ipc.open_file(pa.memory_map(file)).read_all() for file in files])
    query = duckdb.from_arrow(shards).aggregate("sum(len(tokens)), max(list_max(tokens)), count(source)").fetchall()
    assert query == [(store.num_tokens, max(map(max, expected)), 9)]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_no_store(tmp_path, folder):
    with pytest.raises(
        ValueError, match=r"nowhere is not a store \(it has no manifest.json\); make one with mlm prepare"
    ):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no split 'test', only 'train', 'valid'; prepare it again"):
        TokenStore.open(folder, "test")


def change(folder, **changes):
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "is not the manifest of a token store"),
        ({"version": 2}, r"has format version 2, and this program reads 1; prepare the store again"),
        ({"splits": 3}, r"manifest.json is damaged \(.*\); prepare"),
        ({"splits": {"train": {"pieces": 1}}}, r"manifest.json is damaged"),
        ({"special": {"num_tokens": 3}}, r"manifest.json is damaged"),
        ({"dtype": "float64"}, r"manifest.json is damaged \(dtype 'float64'\)"),
    ],
)
def test_wrong_manifests(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(ValueError, match=message):
        TokenStore.open(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000])
def test_damaged_manifests(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json is (damaged|not the manifest)"):
        TokenStore.open(folder)


def test_missing_and_cut_shards(folder):
    path = folder / "train-00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"train-00001.arrow has [\d,]+ bytes where the manifest says [\d,]+; prepare"):
        TokenStore.open(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00001.arrow is missing from the store; prepare"):
        TokenStore.open(folder)


def test_damaged_shards(folder):
    path = folder / "train-00000.arrow"
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    with pytest.raises(ValueError, match=r"train-00000.arrow is damaged \(.*\); prepare the store again"):
        TokenStore.open(folder).piece(0)
    with pytest.raises(ValueError, match=r"train-00000.arrow does not have the checksum in the manifest"):
        TokenStore.open(folder).verify()


def test_every_flipped_bit_is_found(folder):
    path = folder / "valid-00000.arrow"
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"valid-00000.arrow does not have the checksum"):
            TokenStore.open(folder, "valid").verify()


def replace_shard(folder, batch):
    """Put another batch in the place of the held-out shard, with the right size in the manifest."""
    path = folder / "valid-00000.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["valid"]["shards"][0]["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(content))


def test_shards_that_hold_something_else(folder):
    replace_shard(folder, pa.record_batch({"tokens": pa.array([[7, 8]], pa.large_list(pa.uint32()))}))
    with pytest.raises(ValueError, match=r"valid-00000.arrow does not hold large_list<.*uint16>"):
        TokenStore.open(folder, "valid").piece(0)
    replace_shard(folder, pa.record_batch({"tokens": pa.array([[7], [8]], pa.large_list(pa.uint16()))}))
    with pytest.raises(ValueError, match=r"valid-00000.arrow does not hold the 1 pieces of the manifest"):
        TokenStore.open(folder, "valid").piece(0)


def test_ids_outside_the_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"holds token id 100, outside the vocabulary of 100 \(ids 0 to 99\)"):
        write_store(tmp_path, [[5, 100]])
