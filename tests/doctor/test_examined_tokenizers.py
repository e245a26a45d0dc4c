"""What the doctor finds where a tokenizer and a corpus do not fit."""

import json
import random
import shutil

import pytest
from examined import RUSSIAN, assert_found, ids, level, look

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.doctor.fit import check_case
from mlm_pytorch.doctor.tokens import check_vocabulary_size


def dna(draw: random.Random, length: int = 200) -> str:
    return "".join(draw.choices("ACGT", k=length))


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


def test_a_tokenizer_fits_where_blanks_do_not_part_words(write, tokenizer_folder):
    """Rows and Chinese have few blanks: what a tokenizer of theirs makes of the stretch between two says nothing."""
    draw = random.Random(0)
    rows = [f"{n},{draw.choice(['red', 'green'])},{draw.random():.3f},Berlin,{draw.randint(1, 99)}" for n in range(400)]
    syllables = ["".join(chr(0x4E00 + draw.randrange(300)) for _ in range(2)) for _ in range(60)]
    chinese = ["".join(draw.choices(syllables, k=draw.randint(3, 8))) for _ in range(600)]
    for documents in (rows, chinese):
        assert level(look(write(documents)), "fit") == "green"
    assert_found(look(write(chinese), tokenizer=str(tokenizer_folder)), "fit")


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
