"""FASTA and FASTQ, by their suffix or by their first lines."""

import gzip
import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import refused, texts, write

from mlm_pytorch.data.corpus import Corpus


@pytest.mark.parametrize(
    "suffix",
    [
        *[
            ".fasta",
            ".fa",
            ".fna",
            ".faa",
            ".ffn",
            ".frn",
            ".fas",
            ".fsa",
            ".mfa",
            ".afa",
            ".pep",
            ".a2m",
            ".a3m",
            ".unknown",
        ],
        *[".fa.gz", ".fas.bgz", ".unknown.gz"],
    ],
)
def test_fasta(tmp_path, suffix):
    content = b">a some words\nACGT\nacgtNN\n\n; comment\n>empty\n>b\r\nMK*\r\nV-.\r\n"
    corpus = Corpus([write(tmp_path / f"a{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)])
    assert [document.text for document in corpus] == ["ACGTacgtNN", "MK*V-."]
    assert corpus.empty_documents == 1


def test_fastq(tmp_path):
    content = "@r1 x\nACGT\n+\nIII@\n@r2\nacgN\n+r2\n@@@@\n\n@r3\n\n+\n\n"
    corpus = Corpus([write(tmp_path / "a.fastq", content)])
    assert [document.text for document in corpus] == ["ACGT", "acgN"]
    assert corpus.empty_documents == 1
    assert texts(write(tmp_path / "a.fq.gz", gzip.compress(b"@r\r\nAC\r\n+\r\nII\r\n"))) == ["AC"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (">a x\nAC-*\nac\n", ["AC-*ac"]),
        ("\n>a\r\n\r\nAC\r\n>b\nGT", ["AC", "GT"]),
        ("\ufeff>a\nAC\n", ["AC"]),
        ("@r\nACGT\n+\nIIII\n", ["ACGT"]),
        ("> said she\nand so on\n", ["> said she", "and so on"]),  # quoted mail
        (">a\nAC.GT\nac..\n", ["AC.GTac.."]),
        (">a\nMKTAYIAKQRQIS.vkSHFSrq\n", ["MKTAYIAKQRQIS.vkSHFSrq"]),
        (">a empty\n>b\n\n>c\nACGT\n", ["ACGT"]),
        (">I agree\n>so do I\nGood\n", [">I agree", ">so do I", "Good"]),
        (">I agree\nGood.\n", [">I agree", "Good."]),
        ("> quoted\n> again\nGood\n", ["> quoted", "> again", "Good"]),
        ("@r\nAC.GT\n+\nIIIII\n", ["AC.GT"]),
        ("@r\n\n+\n\n@s\nAC\n+\nII\n", ["AC"]),
        (">a\n", [">a"]),
        (">a\n>b\n", [">a", ">b"]),
        ("@you\nhello\nthere\n", ["@you", "hello", "there"]),
        ("@r\nAC GT\n+\nIIIII\n", ["@r", "AC GT", "+", "IIIII"]),
    ],
)
def test_sequences_without_a_suffix_are_told_by_their_first_lines(tmp_path, monkeypatch, content, expected):
    assert texts(write(tmp_path / "a.unknown", content)) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert texts("-") == expected
    named = write(tmp_path / "a.txt", content)  # which says what it is
    assert texts(named)[0][:1] in (">", "@")


@settings(max_examples=30)
@given(sequences=st.lists(st.text("ACGTacgtN*-", max_size=30), max_size=6), width=st.integers(1, 12))
def test_fasta_holds_what_was_written(tmp_path_factory, sequences, width):
    wrapped = [
        "\n".join([f">{i}", *(s[at : at + width] for at in range(0, len(s), width))]) for i, s in enumerate(sequences)
    ]
    assert texts(write(tmp_path_factory.mktemp("law") / "a.fa", "\n".join(wrapped))) == [s for s in sequences if s]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.fasta",
            "ACGT\n>a\n",
            r"a\.fasta line 1 comes before any header; a FASTA record begins with",
        ),
        (
            "a.fasta",
            ">a\nAC\nA1T\n",
            r"a\.fasta line 3: '1' \(column 2\) is not of a sequence, .*; repair it \(if the file is text, name",
        ),
        ("a.fasta", ">a\rACGT\r>b\rGG\r", r"a\.fasta line 1 holds a carriage return, .*; convert it: tr '\\r' '\\n'"),
        ("a.fastq", "@a\rAC\r+\rII\r", r"a\.fastq line 1 holds a carriage return"),
        ("a.fasta", ">a\nAC GT\n", r"line 2: ' ' \(column 3\)"),
        ("a.fasta", ">a\nACÜ\n", r"line 2: 'Ü' \(column 3\)"),
        ("a.fastq", ">a\nAC\n", r"a\.fastq record 1 \(line 1\) begins with '>', not with @; a FASTQ record has four"),
        ("a.fastq", "@a\nAC\n+\nII\n@b\nAC\n", r"record 2 \(line 5\) is cut off within its four lines; copy"),
        ("a.fastq", "@a\nAC\nGT\n+\nIIII\n", r"record 1 \(line 1\): its third line is not \+ \(or"),
        ("a.fastq", "@a\nAC\n+b\nII\n", r"its third line is not \+"),
        ("a.fastq", "@a\nAC\n+\nIII\n", r"record 1 \(line 1\) has 2 letters but 3 qualities; copy"),
        ("a.fastq", "@a\nA?\n+\nII\n", r"a\.fastq line 2: '\?' \(column 2\) is not of a sequence"),
        ("a.fastq", "@a\nAC\n+\nI\x07\n", r"record 1 \(line 1\): '\\x07' is no quality"),
    ],
)
def test_what_is_wrong_with_sequences(tmp_path, name, content, message):
    refused(write(tmp_path / name, content), message)


def test_a_long_record_takes_memory_in_proportion(tmp_path):
    import tracemalloc

    path = write(tmp_path / "a.fa", ">chromosome\n" + ("ACGTacgtNN" * 6 + "\n") * 50_000)
    tracemalloc.start()
    assert [len(text) for text in texts(path)] == [3_000_000]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 3_000_000
