"""Mixtures: proportions in every window, repeats, the end, and what is no mixture."""

import gzip
import math
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data.corpus import Corpus, DocumentStream
from mlm_pytorch.data.mixture import WINDOW, Mixture, parse_mix, schedule


def write(path, count, name=None):
    path.write_text("".join(f"{name or path.stem} {i}\n" for i in range(count)))
    return str(path)


def texts(mixture):
    return [document.text for document in mixture]


def window_errors(weights, length, total=7_000):
    """By how much each part's count differs from its due in every window of `length`, at most."""
    order = np.fromiter(islice(schedule(weights), total), np.int64)
    worst = 0.0
    for part, weight in enumerate(weights):
        counts = np.concatenate([[0], np.cumsum(order == part)])
        in_window = counts[length:] - counts[:-length]
        worst = max(worst, float(np.abs(in_window - length * weight / math.fsum(weights)).max()))
    return worst


# -- the order ---------------------------------------------------------------------------------------------------------

WEIGHTS = st.floats(1e-4, 1) | st.integers(1, 9) | st.sampled_from([0.7, 0.3, 0.1, 1 / 3, 1e-9])


@settings(max_examples=30)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=8))
def test_any_thousand_documents_hold_the_proportions_to_one_document(weights):
    assert window_errors(weights, WINDOW) < 1 + 1e-6


@settings(max_examples=20)
@given(weights=st.lists(WEIGHTS, min_size=2, max_size=2), length=st.integers(1, 5000))
def test_of_two_parts_any_window_does(weights, length):
    assert window_errors(weights, length) <= 1 + 1e-6


@settings(max_examples=20)
@given(cuts=st.sets(st.integers(1, 999), min_size=1, max_size=6), length=st.integers(1, 5000))
def test_weights_in_thousandths_are_exact_in_a_thousand_and_less_than_two_off_in_any_window(cuts, length):
    ends = [0, *sorted(cuts), 1000]
    weights = [(end - begin) / 1000 for begin, end in pairwise(ends)]
    assert window_errors(weights, WINDOW) < 1e-6
    assert window_errors(weights, length) < 2


@settings(max_examples=20)
@given(weights=st.lists(WEIGHTS, min_size=3, max_size=8), length=st.integers(1, 5000))
def test_other_windows_stay_close(weights, length):
    assert window_errors(weights, length) < 5


@settings(max_examples=10)
@given(weights=st.lists(WEIGHTS, min_size=3, max_size=8))
def test_shares_hold_over_a_whole_corpus(weights):
    """What a thousand places cannot divide, later ones make up for; a part of a ten-thousandth is not forgotten."""
    order = np.fromiter(islice(schedule(weights), 30_000), np.int64)
    for part, weight in enumerate(weights):
        counts = np.cumsum(order == part)[WINDOW - 1 :: WINDOW]
        due = WINDOW * np.arange(1, 31) * (weight / math.fsum(weights))
        assert np.abs(counts - due).max() < 1.5


def test_usual_weights():
    assert list(islice(schedule([0.7, 0.3]), 10)) == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert list(islice(schedule([1]), 3)) == [0, 0, 0]
    assert list(islice(schedule([1e-300, 1]), 3)) == [1, 1, 1]
    assert window_errors([0.5, 0.25, 0.25], 4) == 0


# -- documents ---------------------------------------------------------------------------------------------------------


def test_documents_of_parts_in_their_order_until_all_were_read(tmp_path):
    long, short = write(tmp_path / "long.txt", 70), write(tmp_path / "short.txt", 4)
    mixture: DocumentStream = Mixture([(long, 0.7), (short, 0.3)])
    assert isinstance(mixture, Mixture)
    found = texts(mixture)
    assert [text for text in found if text.startswith("long")] == [f"long {i}" for i in range(70)]
    assert found[-1] == "long 69"
    shorts = [text for text in found if text.startswith("short")]
    assert shorts == [f"short {i % 4}" for i in range(len(shorts))]
    assert abs(len(shorts) - 30) <= 1
    assert mixture.repeats == {long: 0, short: (len(shorts) - 1) // 4}
    assert texts(mixture) == found  # again, from the beginning
    assert mixture.repeats == {long: 0, short: (len(shorts) - 1) // 4}


def test_it_ends_as_soon_as_the_last_part_has_ended(tmp_path):
    parts = [(write(tmp_path / f"{name}.txt", count), 1) for name, count in (("a", 3), ("b", 5))]
    assert texts(Mixture(parts)) == ["a 0", "b 0", "a 1", "b 1", "a 2", "b 2", "a 0", "b 3", "a 1", "b 4"]
    assert texts(Mixture(parts[:1])) == ["a 0", "a 1", "a 2"]


def test_counts_are_those_of_one_reading(tmp_path):
    long, short = write(tmp_path / "long.txt", 50), str(tmp_path / "short.txt.gz")
    (tmp_path / "short.txt.gz").write_bytes(gzip.compress(b"one\n\n \ntwo\n"))
    (tmp_path / "folder").mkdir()
    folder = str(tmp_path / "folder")
    write(tmp_path / "folder" / "a.txt", 2)
    write(tmp_path / "folder" / "b.xyz", 2)
    mixture = Mixture([(long, 3), (short, 2), (folder, 1)])
    done = [mixture.bytes_done for _ in mixture]
    assert done == sorted(done)
    assert mixture.bytes_done == mixture.bytes_total == Corpus([long, short, folder]).bytes_total
    assert mixture.empty_documents == 2
    assert [file.source for file in mixture.files] == ["long.txt", "short.txt.gz", "a.txt"]
    assert mixture.skipped_files == [tmp_path / "folder" / "b.xyz"]
    assert mixture.repeats[short] > 0


def test_options_reach_all_parts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a b"}')
    (tmp_path / "b.jsonl").write_text('{"body": [1, 2]}')
    mixture = Mixture([(str(tmp_path / "a.jsonl"), 1), (str(tmp_path / "b.jsonl"), 1)], column="body", num_tokens=3)
    assert [document.text for document in mixture] == ["a b", ""]
    with pytest.raises(ValueError, match=r"b\.jsonl line 1: id 2 is not less than num_tokens 2"):
        list(Mixture([(str(tmp_path / "a.jsonl"), 1), (str(tmp_path / "b.jsonl"), 1)], column="body", num_tokens=2))


def test_standard_input_must_be_spooled(tmp_path, monkeypatch):
    (tmp_path / "stdin").write_text("x\ny\n")
    long = write(tmp_path / "long.txt", 5)
    with (tmp_path / "stdin").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        mixture = Mixture([("-", 1), (long, 1)])
        assert mixture.bytes_total is None
        with pytest.raises(ValueError, match="standard input can be read only once, but a part of a mixture may have"):
            list(mixture)
        (tmp_path / "spool").mkdir()
        mixture.spool(tmp_path / "spool")
    assert texts(mixture) == ["x", "long 0", "y", "long 1", "x", "long 2", "y", "long 3", "x", "long 4"]
    assert mixture.repeats == {"-": 2, long: 0}


# -- errors ------------------------------------------------------------------------------------------------------------


def test_parse_mix():
    assert parse_mix("news.jsonl=0.7") == ("news.jsonl", 0.7)
    assert parse_mix("a=b.txt=2") == ("a=b.txt", 2.0)
    for part, message in [
        ("news.jsonl", r"'news.jsonl' is no part of a mixture; write FILE=WEIGHT, such as news.jsonl=0.7"),
        ("=1", r"'=1' is no part of a mixture"),
        ("a.txt=", r"'a.txt=': weight '' is not a number; write for example a.txt=0.7"),
        ("a.txt=much", r"weight 'much' is not a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_mix(part)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "a mixture has no parts; give at least one"),
        ([0, 0], r"the weights of .*0\.txt, .*1\.txt add up to 0; give at least one"),
        ([1, 0], r"1\.txt has weight 0, so none of it would be read; leave it out"),
        ([1, -1], r"1\.txt has weight -1; a weight is a number above 0"),
        ([math.nan, 1], r"0\.txt has weight nan; a weight is a number"),
        ([1, math.inf], r"1\.txt has weight inf; a weight is a number"),
        ([1] * 1001, r"a mixture of 1,001 parts is too fine; choose at most 1,000"),
    ],
)
def test_weights_that_are_no_proportions(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture([(str(tmp_path / f"{i}.txt"), weight) for i, weight in enumerate(weights)])


def test_parts_that_cannot_be_mixed(tmp_path):
    long, empty = write(tmp_path / "long.txt", 5), write(tmp_path / "empty.txt", 0)
    with pytest.raises(ValueError, match=r"empty\.txt holds no documents \(none at all\); leave it out"):
        list(Mixture([(long, 1), (empty, 1)]))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt holds no documents \(only 2 empty ones\); leave it out"):
        list(Mixture([(long, 1), (empty, 1)]))
    with pytest.raises(ValueError, match=r"long\.txt is in the mixture twice; name it once"):
        Mixture([(long, 1), (long, 2)])
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        Mixture([(long, 1), (str(tmp_path / "nowhere"), 1)])
    short = write(tmp_path / "short.txt", 1)
    stream = iter(Mixture([(long, 1), (short, 1)]))
    next(stream)
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(ValueError, match=r"short\.txt holds no documents any more; it was changed"):
        list(stream)
