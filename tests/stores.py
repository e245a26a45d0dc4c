"""Small corpora, and what a store made of one holds."""

import json

import numpy as np

from mlm_pytorch.data.corpus import Document
from mlm_pytorch.data.store import TokenStore


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def sentences(count):
    return [f"the cat number {i} sat on the mat, the dog on number {i * i}" for i in range(count)]


def pieces(folder, split="train"):
    store = TokenStore.open(folder, split)
    store.verify()
    return [store.piece(i).tolist() for i in range(len(store))]


def documents_of(folder, split, tokenizer):
    """The texts of a split, pieces of a document joined by its full length (only for documents without repeats)."""
    return tokenizer.backend.decode_batch(pieces(folder, split), skip_special_tokens=False)


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Ids:
    """What is read like a `Corpus`, here of ids."""

    files = skipped_files = ()
    begins_again = False
    bytes_done = bytes_total = 10

    def __init__(self, sequences, identity=None):
        self.sequences, self.identity = sequences, identity
        self.empty_documents = 0

    def __iter__(self):
        for sequence in self.sequences:
            if isinstance(sequence, str):
                yield Document(sequence, "text")
            else:
                yield Document("", "ids", np.array(sequence, np.int64))

    def spool(self, folder):
        pass


def splits(folder, tokenizer):
    manifest = TokenStore.open(folder).manifest
    return tuple(
        documents_of(folder, split, tokenizer) if split in manifest.splits else [] for split in ("train", "valid")
    )
