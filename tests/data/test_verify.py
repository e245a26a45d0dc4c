"""verify_store: what is damaged, missing or of another store is named."""

import json

import pytest

from mlm_pytorch.data import store
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.data.verify import verify_store

TEXTS = [f"the cat number {i} sat on the mat" for i in range(60)]


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_PIECES", 25)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    prepare([tmp_path / "a.txt"], tmp_path / "store", tokenizer=tokenizer, valid_share=0.2)
    return tmp_path / "store"


def test_a_good_store(folder):
    report = verify_store(folder)
    assert (report.documents, report.pieces) == (60, 60)
    assert report.shards == len(list(folder.glob("*.arrow"))) > 2
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("*.arrow"))


@pytest.mark.parametrize("name", ["train-00000.arrow", "train-00001.arrow", "valid-00000.arrow"])
def test_a_flipped_bit_and_a_missing_shard(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} does not have the checksum in the manifest; prepare the store again"):
        verify_store(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing from the store"):
        verify_store(folder)


def change(folder, edit):
    content = json.loads((folder / "manifest.json").read_text())
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_another_tokenizer(folder, tmp_path):
    change(folder, lambda content: content.update(tokenizer_fingerprint="0" * 64))
    with pytest.raises(ValueError, match=r"manifest.json is of another tokenizer \(fingerprint 0000.*tokenizer \("):
        verify_store(folder)


def test_tokenizers_in_the_place_of_each_other(folder):
    train_tokenizer(["another text"] * 9, vocab_size=270).save(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"manifest.json is of another tokenizer"):
        verify_store(folder)


def test_other_special_tokens(folder):
    change(folder, lambda content: content["special"].update(pad_token_id=3))
    with pytest.raises(ValueError, match="manifest.json names other special tokens than .*tokenizer; prepare"):
        verify_store(folder)


def test_no_tokenizer(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        verify_store(folder)


def test_shards_of_another_store(folder):
    (folder / "train-00077.arrow").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"train-00077.arrow is not in manifest.json; it is of another store: remove"):
        verify_store(folder)


def test_sums(folder):
    change(folder, lambda content: content["splits"]["train"].update(pieces=7))
    with pytest.raises(ValueError, match=r"manifest.json is damaged: 7 pieces in split 'train', and \d+ in its shards"):
        verify_store(folder)


def test_no_store(tmp_path):
    with pytest.raises(ValueError, match="is not a store"):
        verify_store(tmp_path)
