"""What is held out of a corpus, in how much memory."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data import holdout
from mlm_pytorch.data.encode import EncodedBatch
from mlm_pytorch.data.holdout import HoldOut
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.tokenizer import train_tokenizer


class Written:
    """Stands for the writer of a split: the hashes that it was given."""

    def __init__(self):
        self.hashes = []

    def add(self, ids, lengths, sources, characters, num_bytes, hashes):
        self.hashes += hashes.tolist()


def batch_of(hashes, lengths=None):
    lengths = np.full(len(hashes), 4) if lengths is None else np.asarray(lengths, np.int64)
    ids = np.arange(lengths.sum(), dtype=np.uint32)
    hashes = np.asarray(hashes, np.uint64)
    return EncodedBatch(ids, lengths, [None] * len(hashes), lengths, lengths, hashes, len(hashes), 0, 0)


def held_out(share, hashes, lengths, batch, interrupted=()):
    """Hashes in `train` and in `valid`, and what is said. `interrupted`: documents after which another goes on."""
    train, valid = Written(), Written()
    hold_out = HoldOut(share, train, valid)
    for start in range(0, len(hashes), batch):
        hold_out.add(batch_of(hashes[start : start + batch], lengths[start : start + batch]))
        if start in interrupted:
            state, hold_out = hold_out.state(), HoldOut(share, train, valid)
            hold_out.restore(state)
    said = hold_out.finish()
    return train.hashes, valid.hashes, said


def owned_bytes(array):
    """Of the memory that an array keeps."""
    return array.nbytes if array.base is None else max(array.nbytes, array.base.nbytes)


TEXTS = np.random.default_rng(0).integers(0, 2**64, 40, dtype=np.uint64).tolist()


@settings(deadline=None, max_examples=300)
@given(
    numbers=st.lists(st.integers(0, 39), min_size=1, max_size=80),
    sizes=st.lists(st.sampled_from([1, 2, 5, 300]), min_size=40, max_size=40),
    share=st.sampled_from([0.01, 0.1, 0.4, 0.9]),
    copies=st.integers(1, 4),
    batch=st.integers(1, 30),
)
def test_the_texts_within_the_share_or_one_that_is_no_large_part(numbers, sizes, share, copies, batch):
    hashes = [TEXTS[number] for number in numbers]
    lengths = [sizes[number] for number in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "MAX_COPIES", copies)
        patch.setattr(holdout, "SPARES", 40)  # as many as there are texts, so that none has to be let go of
        train, valid, said = held_out(share, hashes, lengths, batch)
        assert (train, valid, said) == held_out(share, hashes, lengths, 1, interrupted=range(0, 80, 7))
    assert Counter(train + valid) == Counter(hashes)
    assert train
    assert not set(train) & set(valid)
    total, most = sum(lengths), max(2 * share, holdout.LARGE_SHARE) * sum(lengths)
    size_of = Counter()
    for hash, length in zip(hashes, lengths, strict=True):
        size_of[hash] += length
    allowed = sorted(hash for hash, count in Counter(hashes).items() if count <= copies and size_of[hash] < total)
    within = [hash for hash in allowed if hash < share * 2**64]
    fitting = [hash for hash in allowed if size_of[hash] <= most]
    if not allowed:
        assert not valid
    elif not fitting:
        assert set(valid) == {min(allowed, key=lambda hash: (size_of[hash], hash))}
    elif not set(within) & set(fitting):
        assert set(valid) == {fitting[0]}
    else:
        assert set(valid) <= set(within)
        assert set(valid) == set(within) or sum(size_of[hash] for hash in within) > min(most, total - 1)
    of_valid = sum(size_of[hash] for hash in set(valid))
    assert of_valid <= most or len(set(valid)) == 1
    assert bool(said) == (of_valid > most or not valid)


@settings(deadline=None, max_examples=100)
@given(
    numbers=st.lists(st.integers(0, 39), min_size=1, max_size=80),
    spares=st.integers(1, 5),
    most=st.integers(1, 6),
    most_tokens=st.integers(1, 40),
    share=st.sampled_from([0.01, 0.3, 0.9]),
    batch=st.integers(1, 30),
)
def test_little_is_held_at_any_time(numbers, spares, most, most_tokens, share, batch):
    hashes, lengths = [TEXTS[number] for number in numbers], [1 + number % 9 for number in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "SPARES", spares)
        patch.setattr(holdout, "MAX_VALID_DOCUMENTS", most)
        patch.setattr(holdout, "MAX_VALID_TOKENS", most_tokens)
        hold_out = HoldOut(share, Written(), Written())
        for start in range(0, len(hashes), batch):
            hold_out.add(batch_of(hashes[start : start + batch], lengths[start : start + batch]))
            assert len(hold_out.held) <= most
            assert sum(len(document.ids) for document in hold_out.held) <= most_tokens
        train, valid, _ = held_out(share, hashes, lengths, batch)
        assert (train, valid) == held_out(share, hashes, lengths, 1, interrupted=range(0, 80, 7))[:2]
    assert Counter(train + valid) == Counter(hashes)
    assert not set(train) & set(valid)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["all there is"], r"nothing is held out: the corpus is a single document, repeats a few, or has very long"),
        (["a label"] * 30 + ["another"] * 30, r"nothing is held out: .*; name held-out files with --valid"),
        (["four", "more"], r"4 of 8 tokens are held out \(50%\), since the corpus has few documents; name held-out"),
        ([f"number {number}" for number in range(30)], None),
    ],
)
def test_what_is_said_of_few_documents(tmp_path, texts, message):
    said = []
    (tmp_path / "a.txt").write_text("\n".join(texts))
    report = prepare(
        [tmp_path / "a.txt"], tmp_path / "store", tokenizer=train_tokenizer([], kind="bytes"), notice=said.append
    )
    assert len(said) == (message is not None)
    if message is not None:
        assert re.match(message, said[0])
    assert (report.valid_documents == 0) == (message is not None and "nothing" in message)


def test_what_is_held_keeps_no_batch_in_memory():
    hold_out = HoldOut(0.01, Written(), Written())
    generator = np.random.default_rng(0)
    for _ in range(20):
        hold_out.add(batch_of(generator.integers(0, 2**64, 500, dtype=np.uint64)))
    again = HoldOut(0.01, Written(), Written())
    again.restore(hold_out.state())
    for held in (hold_out.held, again.held):
        assert len(held) > 50
        for document in held:
            for name in ("ids", "lengths", "characters", "bytes", "hashes"):
                assert owned_bytes(getattr(document, name)) == getattr(document, name).nbytes
