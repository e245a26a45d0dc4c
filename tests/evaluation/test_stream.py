"""Packs straight from documents: the pieces, and so the masks, that a store would give."""

import json

import numpy as np
import pytest
import torch

from mlm_pytorch.data.corpus import Corpus, Document
from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import record, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import PieceStream, masked_loss

TEXTS = ["the cat sat on the mat", "a dog ran to the red house", "a " * 60, "façade"] * 10
TOKENIZER = train_tokenizer(TEXTS, 320)


def test_equals_the_store_of_the_same_files(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "source": str(i % 3)}) + "\n" for i, text in enumerate(TEXTS)))
    prepare([path], tmp_path / "store", tokenizer=TOKENIZER, seq_len=24, valid_share=0.0)
    store = TokenStore.open(tmp_path / "store")
    stream = PieceStream(Corpus([path]), TOKENIZER, 24, 64)
    for got, expected in zip(stream, sequential_packs(store, 64), strict=True):
        for name in ("input_ids", "lengths", "pieces", "visits"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        for piece in got.pieces[got.pieces >= 0].tolist():
            assert stream.source(piece) == store.source(piece)
    assert stream.num_tokens == store.num_tokens and stream.num_bytes == store.manifest.splits["train"].bytes
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64))
    again = PieceStream(Corpus([path]), TOKENIZER, 24, 200)
    one, other = (masked_loss(model, p, TOKENIZER.special) for p in (again, sequential_packs(store, 64)))
    assert one.num_targets == other.num_targets and one.loss == pytest.approx(other.loss, abs=1e-5)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize(
    "cutting", [{}, {"long_documents": "windows", "overlap": 5}, {"long_documents": "truncate"}], ids=str
)
def test_counts_the_text_that_a_store_was_made_of(tmp_path, kind, cutting):
    """However its pieces were cut; and a text of which a tokenizer makes nothing counts in neither."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (*TEXTS, "\x01\x02", "\u200b")))
    tokenizer = TOKENIZER if kind == "bpe" else train_tokenizer(TEXTS, kind="wordpiece", vocab_size=60)
    prepare([path], tmp_path / "store", tokenizer=tokenizer, seq_len=24, valid_share=0.0, **cutting)
    info = TokenStore.open(tmp_path / "store").manifest.splits["train"]
    assert bool(cutting) == bool(info.dropped_tokens or info.repeated_tokens)
    stream = PieceStream(Corpus([path]), tokenizer, 24, 64)
    assert sum(int(pack.lengths.sum()) for pack in stream) > 0
    text_tokens = info.tokens + info.dropped_tokens - info.repeated_tokens
    assert (stream.num_tokens, stream.num_bytes) == (text_tokens, info.bytes)


def test_documents_of_ids():
    stream = PieceStream([Document("", "cells", np.arange(5, 20))], TOKENIZER, 12, 24)
    assert [len(pack.input_ids) for pack in stream] == [19] and stream.num_bytes is None
    padded = np.array([*TOKENIZER.special.prefix, 7, 8, *TOKENIZER.special.suffix, TOKENIZER.special.pad_token_id])
    (pack,) = PieceStream([Document("", "cells", padded)], TOKENIZER, 12, 24)
    assert pack.input_ids.tolist() == [*TOKENIZER.special.prefix, 7, 8, *TOKENIZER.special.suffix]
    with pytest.raises(ValueError, match="a sequence of cells holds token id 9999, outside the vocabulary"):
        list(PieceStream([Document("", "cells", np.array([9999]))], TOKENIZER, 12, 24))


def test_errors():
    with pytest.raises(ValueError, match="seq_len 2 leaves no room"):
        PieceStream([], TOKENIZER, 2, 24)


def test_a_long_document_is_encoded_part_by_part(monkeypatch):
    """A chromosome is one: encoded in one go it would take a hundred times its memory."""
    monkeypatch.setattr(record, "LONG_TEXT_CHARACTERS", 2000)
    text = " ".join(TEXTS * 20)
    (expected,) = TOKENIZER.encode_batch([text])
    sizes = []

    def encode_batch(self, texts, encode=record.Tokenizer.encode_batch):
        sizes.extend(map(len, texts))
        return encode(self, texts)

    monkeypatch.setattr(record.Tokenizer, "encode_batch", encode_batch)
    stream = PieceStream([Document(text, "genome")], TOKENIZER, 24, 240)
    packs = list(stream)
    content = np.concatenate([pack.input_ids for pack in packs])
    assert content[~np.isin(content, TOKENIZER.special.ids)].tolist() == expected
    assert len(text) > 10_000 and max(sizes) <= 2000


def test_documents_of_ids_are_read_as_they_are_needed():
    read = []

    def documents():
        for number in range(1000):
            read.append(number)
            yield Document("", "events", np.full(1000, 7))

    next(iter(PieceStream(documents(), TOKENIZER, 1002, 4096)))
    assert len(read) < 100
