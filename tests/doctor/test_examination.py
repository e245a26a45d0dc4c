"""The whole examination: planted faults are found, clean corpora are left in peace, mistakes end in one line."""

import base64
import gzip
import json
import random
import shutil
import textwrap
from pathlib import Path

import pytest
from examined import RUSSIAN, assert_found, ids, level, look
from rich.console import Console

from mlm_pytorch.cli.doctor import _show_sample
from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.tokenizer import load_tokenizer, train_tokenizer
from mlm_pytorch.doctor.examination import examine
from mlm_pytorch.doctor.masks import MaskedSample, ShownToken, is_byte_level, token_names

DATA = Path(__file__).parents[3] / "shared" / "data"


TIRED = "Die alte Lehrerin hat das Haus nicht gesehen und der Hund ist auch nicht da, als die Uhr mit dem Zug nach"


MENU = "Home | About us | Products | Contact | Log in | Register now for free and save. "


# fmt: off
PLANTED = {
    "mojibake": ("red", lambda t, i: t.replace("the", "thé").encode().decode("latin-1")),
    "replacement-characters": ("red", lambda t, i: t.replace("e", "\ufffd", 1)),
    "control-characters": ("red", lambda t, i: t[:20] + "\x00" + t[20:]),
    "invisible-characters": ("yellow", lambda t, i: "\ufeff" + t),
    "html": ("yellow", lambda t, i: f'<div class="post"><p>{t}</p></div>'),
    "special-tokens-in-text": ("yellow", lambda t, i: t.replace("the", "[MASK]", 1)),
    "pre-tokenized": ("yellow", lambda t, i: " ".join(f"{w[:3]} ##{w[3:]}" if len(w) > 4 else w for w in t.split())),
    "spaced-letters": ("yellow", lambda t, i: " ".join(t.replace(" ", ""))),
    "blobs": ("yellow", lambda t, i: t[:30] + base64.b64encode(random.Random(i).randbytes(300)).decode()),
    "addresses": ("yellow", lambda t, i: f"https://example.org/articles/{i}?page=2"),
    "numbers": ("yellow", lambda t, i: " ".join(str(n * i) for n in range(1, 40))),
    "capitals": ("yellow", lambda t, i: t.upper()),
    "records": ("yellow", lambda t, i: json.dumps({"id": i, "body": t})),
    "padding": ("yellow", lambda t, i: t + " " * 40 + t),
    "self-repetition": ("yellow", lambda t, i: (t[:40] + "\n") * 50),
    "no-blanks": ("yellow", lambda t, i: t.replace(" ", "").replace(".", "") + "xyz"),
    "duplicates": ("yellow", lambda t, i: "The same text stands here in many places of this corpus, word for word."),
    "openings": ("yellow", lambda t, i: MENU + t),
    "languages": ("yellow", lambda t, i: f"{TIRED} {i}"),
    "scripts": ("yellow", lambda t, i: f"{RUSSIAN} {i}"),
    "empty-documents": ("yellow", lambda t, i: "  \n"),
    "outliers": ("yellow", lambda t, i: f"{RUSSIAN} {i}"),
    "giants": ("red", lambda t, i: t if i != 50 else " ".join(f"{t} {n}" for n in range(3000))),
}


@pytest.mark.parametrize("check", PLANTED)
def test_a_fault_in_one_document_of_a_hundred_is_found(plant, tokenizer_folder, check):
    least, change = PLANTED[check]
    assert_found(look(plant(change), tokenizer=str(tokenizer_folder)), check, least)


def test_a_clean_corpus_has_nothing_red_and_little_yellow(write, texts, monkeypatch):
    monkeypatch.setattr("mlm_pytorch.doctor.trial.measure_peak", lambda device, dtype: 1e12)  # however busy the machine
    report = look(write(texts), trial_seconds=1.0, model="tiny")
    assert report.level != "red", report.findings
    assert {f.check for f in report.findings if f.level == "yellow"} <= {
        "budget",
        "vocabulary-size",
        "precision",
        "fit",
    }
    assert report.trial is not None
    assert report.trial.steps >= 1
    assert report.forecast is not None
    assert report.forecast.memory_bytes > 0
    assert len(report.samples) == 3
    assert report.read["whole"]


def test_broken_lines_are_counted_and_the_rest_is_read(write, texts, tmp_path, tokenizer_folder):
    path = Path(write(texts))
    lines = path.read_text().splitlines()
    for index in range(50, len(lines), 100):
        lines[index] = lines[index][:-5]
    path.write_text("\n".join(lines))
    report = look(str(path), tokenizer=str(tokenizer_folder))
    assert_found(report, "unreadable", "red")
    finding = next(f for f in report.findings if f.check == "unreadable")
    assert finding.seen.startswith("8 of them (1.0%)")
    assert "line 51" in finding.seen
    assert report.read["documents_read"] == len(texts) - 8


def test_bytes_that_are_not_utf8(texts, tmp_path, tokenizer_folder):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\n".join(text.replace("the", "th\xe9").encode("latin-1") if i % 100 == 50 else text.encode()
                                for i, text in enumerate(texts)))  # fmt: skip
    assert_found(look(str(path), tokenizer=str(tokenizer_folder)), "unreadable", "red")
    replaced = look(str(path), tokenizer=str(tokenizer_folder), encoding_errors="replace")
    assert level(replaced, "unreadable") == "green"
    assert_found(replaced, "replacement-characters", "red")


def test_a_file_that_was_cut_off(write, texts, tmp_path, tokenizer_folder):
    packed = gzip.compress(Path(write(texts)).read_bytes())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    report = look(str(path), tokenizer=str(tokenizer_folder))
    assert_found(report, "unreadable", "red")
    assert "cut off" in next(f for f in report.findings if f.check == "unreadable").seen


def test_a_file_without_documents_and_one_of_an_unknown_kind(write, texts, tmp_path, tokenizer_folder):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.move(write(texts), folder / "a.jsonl")
    (folder / "b.jsonl").write_text("\n")
    (folder / "c.pdf").write_bytes(b"%PDF")
    report = look(str(folder), tokenizer=str(tokenizer_folder))
    assert_found(report, "barren-files", "red")
    assert_found(report, "skipped-files")


def test_lines_of_paragraphs(texts, tmp_path, tokenizer_folder):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(textwrap.fill(text, 70) for text in texts))
    assert_found(look(str(path), tokenizer=str(tokenizer_folder)), "lines", "red")
    assert level(look(str(path), tokenizer=str(tokenizer_folder), split_text="paragraph"), "lines") == "green"


def test_lines_in_lower_case_are_no_parts_of_paragraphs(texts, tmp_path, tokenizer_folder):
    """Chat and queries: each line a document, none with a capital, most without a full stop."""
    draw = random.Random(0)
    path = tmp_path / "chat.txt"
    path.write_text(
        "\n".join(text.lower().replace(".", "")[: int(draw.triangular(20, 120, 30))].strip() for text in texts)
    )
    assert level(look(str(path), tokenizer=str(tokenizer_folder)), "lines") == "green"
    wrapped = [line for text in texts for line in textwrap.wrap(text, draw.randint(60, 160))]
    path.write_text("\n".join(wrapped))
    assert_found(look(str(path), tokenizer=str(tokenizer_folder)), "lines", "red")


def test_a_column_of_labels(write, tokenizer_folder):
    labels = ["positive review", "negative review", "no opinion"] * 200
    assert_found(look(write(labels), tokenizer=str(tokenizer_folder)), "values", "red")


def test_tiny_documents(write, texts, tokenizer_folder):
    words = sorted({word for text in texts for word in text.split()}) * 20
    assert_found(
        look(write([f"{w} {i}"[:6] for i, w in enumerate(words)]), tokenizer=str(tokenizer_folder)), "short-documents"
    )


def test_held_out_documents_in_the_corpus(write, texts, tokenizer_folder):
    corpus = write(texts[:700])
    clean = write(texts[700:], "clean.jsonl")
    leaking = write([*texts[700:], *texts[:1]], "leaking.jsonl")  # 1 of 101
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), valid=(leaking,)), "leak", "red")
    assert level(look(corpus, tokenizer=str(tokenizer_folder), valid=(clean,)), "leak") == "green"


def test_files_are_read_as_a_preparation_reads_them(write, texts, tokenizer_folder, tmp_path):
    (tmp_path / "data").mkdir()
    corpus, held_out = write(texts[:300], "data/a.jsonl"), write(texts[300:320], "data/valid.jsonl")
    folder = str(tmp_path / "data")
    options = {"tokenizer": str(tokenizer_folder), "trial_seconds": 0.0}
    report = examine(DoctorConfig(corpus=(folder, corpus), valid=(held_out,), **options))
    assert level(report, "leak") == level(report, "duplicates") == "green"  # one is not trained on, one is read once
    assert report.read["documents_read"] == 300
    assert level(examine(DoctorConfig(corpus=(corpus,), valid=(corpus,), **options)), "leak") == "red"
    with pytest.raises(ValueError, match=r"valid\.jsonl is held out, but a part of the mixture too"):
        examine(DoctorConfig(mix=(f"{folder}=1",), valid=(held_out,), **options))


def test_a_mixture_out_of_balance(write, texts, tokenizer_folder):
    large, small = write(texts), write(texts[:4], "small.jsonl")
    report = examine(
        DoctorConfig(mix=(f"{large}=0.5", f"{small}=0.5"), tokenizer=str(tokenizer_folder), trial_seconds=0)
    )
    assert_found(report, "repeats", "red")
    report = examine(
        DoctorConfig(mix=(f"{large}=0.99", f"{small}=0.01"), tokenizer=str(tokenizer_folder), trial_seconds=0)
    )
    assert_found(report, "balance")


def test_a_store(texts, write, tokenizer_folder, tmp_path):
    prepare(Corpus([write(texts)]), tmp_path / "store", tokenizer=load_tokenizer(tokenizer_folder), seq_len=64)
    report = look(str(tmp_path / "store"))
    assert report.level != "red", report.findings
    assert report.read["pieces"] > 0
    with pytest.raises(ValueError, match=r"^--seq-len is settled by the store, at 64; leave it out"):
        look(str(tmp_path / "store"), seq_len=128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^no corpus is named; give files, globs, folders, a store, or --ranks for a plan alone$"),
        ({"corpus": ("/none/such",)}, r"^/none/such does not exist; check the path of the corpus$"),
        ({"corpus": ("a",), "mix": ("b=1",)}, r"^--mix and the corpus a are both given; name every part with --mix"),
        ({"ranks": (8,), "model": "huge"}, r"^--model 'huge' is neither a preset \(nano, .*\) nor a folder; name one"),
        ({"ranks": (0,)}, r"^--ranks 0 is too small; give at least 1$"),
        ({"ranks": (8,), "mask_prob": 0.0}, r"^--mask-prob 0.0 is outside \(0, 1\]; 0.15 to 0.4 is usual$"),
        ({"ranks": (8,), "seq_len": 0}, r"^--seq-len 0 is too small; give at least 1$"),
    ],
)
def test_mistakes_end_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        examine(DoctorConfig(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 5}, r"^overlap 5 is for long_documents 'windows', at least 0; with 'split' leave it out$"),
        ({"long_documents": "windows"}, r"^windows need an overlap of at least 1 token; choose one, or long_documents"),
        ({"workers": 0}, r"^workers 0 is too few; choose at least 1$"),
        (
            {"engine": "ray", "drop_duplicates": True},
            r"^drop_duplicates reads the corpus on one machine, so engine ray",
        ),
        ({"valid": ("nowhere.txt",)}, r"^nowhere.txt does not exist; check the path of the corpus$"),
        ({"valid": ("none", "a.txt")}, r"^--valid none holds nothing out, but files are named as well"),
        (
            {"vocab_size": 300},
            r"^--vocab-size 300 is for training a tokenizer, but one is given; leave out one of them$",
        ),
    ],
)
def test_what_a_preparation_refuses(write, texts, tokenizer_folder, options, message):
    with pytest.raises(ValueError, match=message):
        look(write(texts[:50]), tokenizer=str(tokenizer_folder), **options)


@pytest.mark.parametrize("options", [{"column": "x"}, {"valid": ("nowhere.txt",)}, {"tokenizer": "bpe"}])
def test_what_a_store_has_settled_is_refused(write, texts, tokenizer_folder, tmp_path, options):
    prepare(Corpus([write(texts[:50])]), tmp_path / "store", tokenizer=load_tokenizer(tokenizer_folder), seq_len=64)
    with pytest.raises(ValueError, match=rf"^--{next(iter(options))} is settled by the store \S+; leave it out"):
        look(str(tmp_path / "store"), **options)


def test_mistakes_about_ids(write, texts, tokenizer_folder):
    with pytest.raises(
        ValueError, match=r"^the corpus holds no token ids; leave out --add-special-tokens, --num-tokens"
    ):
        look(write(texts), add_special_tokens=True)
    with pytest.raises(ValueError, match=r"^--num-tokens and the like describe ids without a tokenizer; leave out"):
        look(write(ids()), num_tokens=50, tokenizer=str(tokenizer_folder))


def test_a_corpus_of_which_nothing_can_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": 1}\n{"title": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 1 has none of 'text'.*--column"):
        look(str(tmp_path / "a.jsonl"))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mix10m/valid.jsonl.gz", {"tokenizer": str(DATA / "mix10m/tokenizer-16k")}),
        ("sequences/proteins.parquet", {}),
        ("sequences/metagenomics.fasta", {}),
        ("sequences/genecorpus.parquet", {"add_special_tokens": True}),
    ],
)
def test_real_clean_corpora_have_nothing_red(name, options):
    report = look(str(DATA / name), **options)
    assert report.level != "red", report.findings
    assert sum(f.level == "yellow" for f in report.findings) <= 5


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["[CLS]", "when", "a", "fil", "##m", ",", "i"], "[CLS] when a film, i"),
        (["[CLS]", "M", "K", "T"], "[CLS]MKT"),
        (["[CLS]", "Some", " film", "s"], "[CLS]Some films"),
    ],
)
def test_samples_read_like_text(tokens, shown):
    console = Console(record=True, width=200)
    _show_sample(MaskedSample(tuple(ShownToken(token, None, False) for token in tokens), len(tokens), 0.0), console)
    assert console.export_text().strip().removeprefix(f"{len(tokens)} tokens, 0% predicted:").strip() == shown


@pytest.mark.parametrize(
    ("kind", "text"),
    [("bpe", "的一是在"), ("bpe", "CCc1ccccc1[NH3+](=O)O"), ("bytes", "the old river"), ("bpe", "an old river")],
)
def test_samples_of_byte_level_tokens_read_like_their_text(kind, text):
    """Their names have a letter for each byte, and a text without blanks has none between its tokens."""
    tokenizer = train_tokenizer([text] * 50, None if kind == "bytes" else 320, kind)
    ids, name = tokenizer.encode_batch([text])[0], token_names(tokenizer)
    tokens = tuple(ShownToken(name(id), None, False) for id in ids)
    console = Console(record=True, width=200)
    _show_sample(MaskedSample(tokens, len(ids), 0.0, is_byte_level(tokenizer)), console)
    assert console.export_text().strip().removeprefix(f"{len(ids)} tokens, 0% predicted:").strip() == text
