"""What is held out of a corpus, in how much memory."""

import numpy as np

from mlm_pytorch.data.encode import EncodedBatch
from mlm_pytorch.data.holdout import HoldOut


class Written:
    """Stands for the writer of a split: how many documents it was given."""

    documents = 0

    def add(self, ids, lengths, *_):
        self.documents += len(lengths)


def batch_of(hashes, lengths=None):
    lengths = np.full(len(hashes), 4) if lengths is None else np.asarray(lengths)
    ids = np.arange(lengths.sum(), dtype=np.uint32)
    hashes = np.asarray(hashes, np.uint64)
    return EncodedBatch(ids, lengths, [None] * len(hashes), lengths, lengths, hashes, len(hashes), 0, 0)


def owned_bytes(array):
    """Of the memory that an array keeps."""
    return array.nbytes if array.base is None else max(array.nbytes, array.base.nbytes)


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
