"""Faults in one document of a hundred, of more than twenty kinds, through the whole examination; and clean corpora."""

import base64
import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mlm_pytorch.cli.doctor import _show_sample
from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.cli.settling import pack_tokens_of, settle_by_budget
from mlm_pytorch.cli.starting import find_start
from mlm_pytorch.cli.store import named_store
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer, train_tokenizer
from mlm_pytorch.doctor.examination import Report, _settled, _setup, examine
from mlm_pytorch.doctor.fit import check_case
from mlm_pytorch.doctor.masks import MaskedSample, ShownToken
from mlm_pytorch.doctor.tokens import check_vocabulary_size
from mlm_pytorch.encoder import PRESETS, Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.metrics import Display

DATA = Path(__file__).parents[3] / "shared" / "data"
LEVELS = ("green", "yellow", "red")


def look(*corpus: str, **options) -> Report:
    return examine(DoctorConfig(corpus=corpus, **({"trial_seconds": 0.0} | options)))


def level(report: Report, check: str) -> str:
    return max((f.level for f in report.findings if f.check == check), key=LEVELS.index)


def assert_found(report: Report, check: str, least: str = "yellow") -> None:
    assert LEVELS.index(level(report, check)) >= LEVELS.index(least), [f for f in report.findings if f.check == check]
    finding = next(f for f in report.findings if f.check == check and f.level != "green")
    assert finding.seen
    assert finding.why
    assert finding.remedy


def dna(draw: random.Random, length: int = 200) -> str:
    return "".join(draw.choices("ACGT", k=length))


TIRED = "Die alte Lehrerin hat das Haus nicht gesehen und der Hund ist auch nicht da, als die Uhr mit dem Zug nach"
RUSSIAN = (
    "Старый учитель нашёл сломанные часы посреди ночи, и никто не знал почему. Потом пришла зима, и река замёрзла. "
)
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
# fmt: on


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
    import textwrap

    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(textwrap.fill(text, 70) for text in texts))
    assert_found(look(str(path), tokenizer=str(tokenizer_folder)), "lines", "red")
    assert level(look(str(path), tokenizer=str(tokenizer_folder), split_text="paragraph"), "lines") == "green"


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


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_text_in_a_language_that_the_tokenizer_lacks(plant, texts, tmp_path):
    train_tokenizer(texts, kind="characters").save(tmp_path / "characters")
    report = look(plant(lambda t, i: f"{RUSSIAN} {i}"), tokenizer=str(tmp_path / "characters"))
    assert_found(report, "unknown")


def test_text_that_is_unknown_altogether(write, texts, tmp_path):
    train_tokenizer(texts, kind="characters").save(tmp_path / "characters")
    report = look(write([f"{RUSSIAN} {i}" for i in range(100)]), tokenizer=str(tmp_path / "characters"))
    assert_found(report, "unknown", "red")


@pytest.mark.parametrize("token", ["mask_token", "pad_token"])
def test_a_tokenizer_without_mask_or_padding(write, texts, tokenizer_folder, tmp_path, token):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "without")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop(token)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    content = (folder / "tokenizer.json").read_text().replace("[MASK]", "[HIDE]").replace("[PAD]", "[FILL]")
    (folder / "tokenizer.json").write_text(content)
    report = look(write(texts), tokenizer=str(folder))
    assert_found(report, "tokenizer", "red")
    assert report.samples == []


def test_a_tokenizer_without_framing(write, texts, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "unframed")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert_found(look(write(texts), tokenizer=str(folder)), "framing")


def test_a_tokenizer_of_cased_text_says_what_lower_case_would_take(texts):
    titles = [text.title() for text in texts]
    tokenizer = train_tokenizer(titles, 1000, "bpe")
    assert check_case(tokenizer, titles).seen.endswith("% more tokens")
    assert check_case(tokenizer, [text.lower() for text in texts]).seen == "lower case would save 0.0% of tokens"


def test_a_tokenizer_of_lower_case_text(write, texts, tmp_path):
    train_tokenizer([text.lower() for text in texts], 2000, "bpe").save(tmp_path / "lower")
    assert_found(look(write([text.title() for text in texts]), tokenizer=str(tmp_path / "lower")), "case")


def test_a_tokenizer_that_changes_the_text(write, texts, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "uncased")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert_found(look(write(texts), tokenizer=str(folder)), "round-trip")


def test_a_vocabulary_of_another_corpus(write, texts, tmp_path):
    draw = random.Random(0)
    others = ["".join(draw.choices("abcdefghijklmnop", k=8)) for _ in range(12_000)]
    train_tokenizer([" ".join(others[i : i + 20]) for i in range(0, 12_000, 20)] * 2 + list(texts), 9000, "bpe").save(
        tmp_path / "foreign"
    )
    report = look(write(texts), tokenizer=str(tmp_path / "foreign"))
    assert_found(report, "vocabulary")
    assert_found(report, "vocabulary-size")


def test_a_tokenizer_that_cuts_words_to_crumbs(write, texts, tmp_path):
    draw = random.Random(0)
    noise = [" ".join("".join(draw.choices("0123456789", k=6)) for _ in range(20)) for _ in range(100)]
    train_tokenizer(noise, 400, "bpe").save(tmp_path / "crumbs")
    report = look(write(texts), tokenizer=str(tmp_path / "crumbs"))
    assert_found(report, "fit", "red")


def test_dna_with_a_tokenizer_of_words_and_text_with_one_of_dna(write, texts, tokenizer_folder):
    draw = random.Random(0)
    sequences = [dna(draw, 2000) for _ in range(200)]
    assert_found(look(write(sequences), tokenizer=str(tokenizer_folder)), "kind", "red")
    assert_found(look(write(texts), tokenizer="kmer"), "kind", "red")
    assert look(write(sequences)).level != "red"


def test_a_kind_named_for_sequences_that_do_not_show_it(write, texts):
    draw = random.Random(0)
    peptides = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(8, 14))) for _ in range(200)]
    for documents in (peptides, [("".join(peptides[i : i + 9])).lower() for i in range(100)]):
        report = look(write(documents), tokenizer="amino-acids")
        assert level(report, "kind") == "green"
        assert "no-blanks" not in {finding.check for finding in report.findings}
    reads = ["".join(draw.choices("ACGTRYKM", [9, 9, 9, 9, 1, 1, 1, 1], k=60)) for _ in range(100)]
    assert level(look(write(reads), tokenizer="kmer"), "kind") == "green"
    run_together = ["".join(filter(str.isalpha, text)) for text in texts]
    assert_found(look(write(run_together), tokenizer="amino-acids"), "kind", "red")


def test_words_that_are_whole_documents(write, tokenizer_folder, texts):
    glued = [text.replace(" ", "").replace(".", "") if i % 100 == 50 else text for i, text in enumerate(texts)]
    assert_found(look(write(glued), tokenizer=str(tokenizer_folder), selection="words"), "words")
    assert level(look(write(texts), tokenizer=str(tokenizer_folder), selection="words"), "words") == "green"


def test_a_tokenizer_that_knows_no_words(write, texts, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "wordless")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert_found(look(write(texts[:100]), tokenizer=str(folder), selection="words"), "words", "red")


# -- ids ---------------------------------------------------------------------------------------------------------------


def ids(count: int = 300, size: int = 50) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(5, size, draw.integers(20, 60)).tolist() for _ in range(count)]


def test_ids_outside_the_vocabulary(write):
    rows = ids()
    rows[150][3] = rows[50][7] = rows[250][1] = 60
    report = look(write(rows), num_tokens=50, mask_token_id=4, pad_token_id=0)
    assert_found(report, "ids", "red")
    assert report.samples == []


def test_padding_at_the_ends_is_no_content_but_padding_in_between_is_reported(write):
    rows = ids()
    for index in (50, 150, 250):
        rows[index] = [0] * 20 + rows[index] + [0] * 30
    report = look(write(rows), num_tokens=50, mask_token_id=4, pad_token_id=0)
    assert level(report, "special-ids") == "green"
    for index in (50, 150, 250):
        rows[index] += rows[index]
    report = look(write(rows), num_tokens=50, mask_token_id=4, pad_token_id=0)
    assert_found(report, "special-ids", "red")
    assert level(look(write(ids()), num_tokens=50, mask_token_id=4, pad_token_id=0), "special-ids") == "green"


def test_ids_without_a_tokenizer(write):
    assert_found(look(write(ids())), "tokenizer", "red")
    assert look(write(ids()), add_special_tokens=True).level != "red"


def test_a_vocabulary_that_is_settled_is_not_told_to_learn_a_smaller_one():
    remedies = [check_vocabulary_size(4117, 99_999, kind).remedy for kind in ("kmer:6", "ids", "bpe", None)]
    assert "--tokenizer kmer:3" in remedies[0] and "rare ids" in remedies[1]
    assert all("--vocab-size" in remedy for remedy in remedies[2:])


def test_ids_with_gaps(write):
    report = look(write([[i * 50 for i in range(200)] * 5] * 40), num_tokens=10_000, add_special_tokens=True)
    assert "--vocab-size" not in " ".join(finding.remedy or "" for finding in report.findings)
    assert_found(report, "vocabulary")


def test_an_architecture_that_is_not_tried(write, texts, tmp_path, tokenizer_folder):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match=r"is of type 'bert', .* architecture only; .* pass --tokenizer .*bert --trial-s"
    ):
        look(write(texts), model=str(folder))


# -- setups ------------------------------------------------------------------------------------------------------------


def test_pieces_longer_than_the_model_or_the_pack(write, texts, tokenizer_folder):
    corpus = write(texts)
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), seq_len=4096), "positions", "red")
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), seq_len=512, pack_tokens=256), "pack", "red")
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), seq_len=2048, pack_tokens=4096), "seq-len")


def test_truncation_that_loses_text(write, texts, tokenizer_folder):
    report = look(write(texts), tokenizer=str(tokenizer_folder), seq_len=32, long_documents="truncate")
    assert_found(report, "long-documents", "red")
    report = look(write(texts), tokenizer=str(tokenizer_folder), seq_len=8)
    assert_found(report, "long-documents")


def test_a_corpus_of_one_short_document(write):
    assert_found(look(write(["One short document."])), "vocabulary-size", "red")


@pytest.mark.parametrize(("budget", "model"), [("10steps", "nano"), ("20000steps", "mini"), ("1s", "nano")])
def test_the_model_is_the_one_that_training_would_choose(write, texts, tokenizer_folder, budget, model):
    said: list[str] = []
    config = DoctorConfig(corpus=(write(texts),), tokenizer=str(tokenizer_folder), budget=budget, trial_seconds=0.0)
    examine(config, said.append)
    assert said[-1] == f"trying {model}, which mlm train would choose for {budget}"


@pytest.fixture
def training_of(monkeypatch, tmp_path) -> Callable[..., tuple[int, int]]:
    """Tells the tokens of a pack, and of a piece, that `mlm train` takes with some options; both measure one peak."""
    for module in ("mlm_pytorch.doctor.examination", "mlm_pytorch.cli.settling"):
        monkeypatch.setattr(f"{module}.measure_peak", lambda device, dtype: 1e11)

    def training_of(device: torch.device, corpus: str, **options) -> tuple[int, int]:
        config = TrainConfig(corpus=(corpus,), out=tmp_path / "run", **options)
        config = settle_by_budget(config, tmp_path / "run", Display(quiet=True), World(device=device))
        start, store = find_start(config.model), named_store(config)
        by_default = min(start.trained_at.seq_len, start.longest)
        seq_len = Manifest.read(store).seq_len if store else config.seq_len or by_default
        return pack_tokens_of(config, getattr(start, "model", nn.Module())), seq_len

    return training_of


def packs_of(device: torch.device, store: TokenStore | None, **options) -> tuple[int, int]:
    """The same of what the doctor tries."""
    setup = _setup(_settled(DoctorConfig(**options), store, device), None, store, device)
    return setup.pack_tokens, setup.seq_len


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("model", [None, *PRESETS])
def test_packs_are_those_of_training(training_of, device, model):
    """With a preset that is named as with one that is left open: the forecast is for the packs that will be trained on.

    A GPU need not be there: nothing is computed on it.
    """
    cases = [{"budget": budget} for budget in ("1Mtokens", "4Mtokens", "1Btokens", "10steps", "20m", "100epochs")]
    for changes in (*cases, {"budget": "10steps", "seq_len": 1000}, {"budget": "1Btokens", "pack_tokens": 640}):
        options = {"model": model, "precision": "float32"} | changes
        expected = training_of(torch.device(device), "corpus.txt", **options)
        assert packs_of(torch.device(device), None, **options) == expected, changes


@pytest.mark.parametrize("seq_len", [64, 3000])
@pytest.mark.parametrize("budget", ["1Mtokens", "5000epochs"])
def test_packs_of_a_store_are_those_of_training(training_of, write, texts, tokenizer_folder, tmp_path, seq_len, budget):
    prepare([write(texts)], tmp_path / "store", tokenizer=load_tokenizer(tokenizer_folder), seq_len=seq_len)
    options = {"model": "mini", "budget": budget}
    expected = training_of(torch.device("cpu"), str(tmp_path / "store"), **options)
    assert expected == (max(2048 if budget == "1Mtokens" else 4096, seq_len), seq_len)
    assert packs_of(torch.device("cpu"), TokenStore.open(tmp_path / "store"), **options) == expected


@pytest.mark.parametrize(("width", "positions"), [(128, 2048), (320, 128), (768, 8192)])
def test_packs_of_a_model_that_is_continued_are_those_of_training(
    training_of, tokenizer_folder, tmp_path, width, positions
):
    tokenizer = load_tokenizer(tokenizer_folder)
    shape = EncoderConfig(tokenizer.special.num_tokens, width, 64, 2, 2, max_position_embeddings=positions)
    export_encoder(Encoder(shape), tokenizer.special, tmp_path / "model", tokenizer.save)
    for changes in ({}, {"seq_len": 100}, {"pack_tokens": 640}, {"budget": "1Btokens"}):
        options = {"model": str(tmp_path / "model")} | changes
        expected = training_of(torch.device("cpu"), "corpus.txt", **options)
        assert packs_of(torch.device("cpu"), None, **options) == expected, changes


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


# -- real data ---------------------------------------------------------------------------------------------------------


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
