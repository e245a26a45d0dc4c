"""Repeated documents: counted exactly while they fit, and estimated in bounded memory beyond."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data.corpus import Document
from mlm_pytorch.doctor import repeats as module
from mlm_pytorch.doctor.repeats import Repeats


@given(st.lists(st.integers(0, 30), max_size=200))
def test_repeats_are_counted_exactly_while_they_fit(numbers):
    repeats = Repeats()
    for number in numbers:
        repeats.add(Document(f"a document long enough to count when it repeats, number {number}", None))
    assert repeats.duplicates == len(numbers) - len(set(numbers))
    assert repeats.documents == len(numbers)


def test_repeats_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(module, "HASHES", 500)
    repeats = Repeats()
    for number in range(20_000):
        repeats.add(Document(f"a document long enough to count when it repeats, number {number % 10_000}", None))
    assert len(repeats.counts) <= 500
    assert 0.7 * 10_000 <= repeats.duplicates <= 1.3 * 10_000


def test_short_texts_do_not_count_as_repeats():
    repeats = Repeats()
    for _ in range(10):
        repeats.add(Document("Chapter 1", None))
        repeats.add(Document("", None, np.arange(5)))
    assert repeats.duplicates == 0
