"""Checks of a corpus as a whole."""

import pytest

from mlm_pytorch.doctor.corpus import Part, check_duplicates, check_leak, check_mixture
from mlm_pytorch.doctor.repeats import Repeats


@pytest.mark.parametrize(
    ("share", "level", "seen"),
    [
        (0.5, "red", "about 10.0% of the 20 held-out documents are in the corpus (50% of it read)"),
        (None, "red", "at least 5.0% of the 20 held-out documents are in the corpus (an unknown share of it read)"),
    ],
)
def test_held_out_documents_in_a_corpus_that_was_read_in_part(share, level, seen):
    repeats = Repeats(frozenset(range(20)), documents=1000, found={3})
    assert (check_leak(repeats, share).level, check_leak(repeats, share).seen) == (level, seen)
    assert check_leak(Repeats(frozenset(range(20)), documents=1000), share).level == "green"


def test_repeats_in_an_unknown_share():
    found = check_duplicates(Repeats(documents=1000), None)
    assert found.level == "green" and "(an unknown share of the corpus read)" in found.seen


def test_a_part_of_unknown_size_says_nothing_of_repeats():
    parts = [Part("small", 0.5, 4), Part("large", 0.5, 1000)]
    assert [finding.check for finding in check_mixture(parts)] == ["balance", "repeats"]
    assert [finding.check for finding in check_mixture([parts[0], Part("large", 0.5, None)])] == ["balance"]
