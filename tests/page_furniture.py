"""What lies in the folder in which a page's blocks run: small corpora of every kind, a run, a store and models."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from mlm_pytorch.cli import main as mlm

NOUNS = ["cat", "dog", "river", "house", "teacher", "garden", "mountain", "letter", "window", "doctor", "train", "city"]
VERBS = ["sees", "finds", "follows", "paints", "visits", "remembers", "builds", "crosses", "leaves", "likes"]
ADJECTIVES = ["old", "small", "quiet", "red", "distant", "careful", "wooden", "broken", "bright", "empty"]
PLACES = ["in the morning", "near the sea", "behind the station", "after the war", "on the mat", "for the first time"]
FINDINGS = ["cardiomyopathy", "stenosis", "atherosclerosis", "thrombosis", "hypertrophy", "fibrosis", "ischaemia"]
ORGANS = ["left ventricle", "mitral valve", "aorta", "septum", "coronary artery", "right atrium", "pericardium"]


def sentence(draw: random.Random) -> str:
    """English enough for tokenizers and the doctor."""
    subject, verb, other = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(NOUNS)
    return f"The {draw.choice(ADJECTIVES)} {subject} {verb} a {draw.choice(ADJECTIVES)} {other} {draw.choice(PLACES)}."


def documents(count: int, seed: int) -> list[str]:
    """Documents of two to eight sentences, no two alike."""
    draw = random.Random(seed)
    return [f"Chapter {i}. " + " ".join(sentence(draw) for _ in range(draw.randint(2, 8))) for i in range(count)]


def json_lines(texts: list[str]) -> str:
    """A column `text`."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def corpora(folder: Path) -> None:
    """Text, proteins, DNA, events and cells."""
    draw, texts = random.Random(0), documents(300, 0)
    (folder / "corpus.jsonl").write_text(json_lines(texts), encoding="utf-8")
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json_lines(texts))
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "general.txt").write_text("\n".join(documents(100, 1)) + "\n", encoding="utf-8")
    (folder / "valid.jsonl").write_text(json_lines(documents(40, 2)), encoding="utf-8")
    notes = [
        f"{draw.choice(FINDINGS)} of the {draw.choice(ORGANS)}; {draw.choice(FINDINGS)} suspected." for _ in range(200)
    ]
    with gzip.open(folder / "notes.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json_lines(notes))
    (folder / "corpus").mkdir()
    for part in (0, 1):
        (folder / "corpus" / f"part-{part}.jsonl").write_text(json_lines(documents(150, 10 + part)), encoding="utf-8")
    for name, letters, count, shortest, longest in (
        ("proteins.fasta", "ACDEFGHIKLMNPQRSTVWY", 200, 40, 200),
        ("genome.fasta", "ACGT", 20, 1000, 3000),
    ):
        records = ("".join(draw.choices(letters, k=draw.randint(shortest, longest))) for _ in range(count))
        (folder / name).write_text("".join(f">record {i}\n{r}\n" for i, r in enumerate(records)), encoding="utf-8")
    numbers = np.random.default_rng(0)
    np.save(folder / "events.npy", numbers.integers(2, 5000, (200, 64)))
    cells = [numbers.permutation(2000)[: numbers.integers(20, 60)].tolist() for _ in range(200)]
    pq.write_table(pa.table({"input_ids": cells}), folder / "cells.parquet")


def ready(folder: Path) -> None:
    """A store, a run of two steps, its tokenizer, and a BERT with a WordPiece tokenizer of its own."""
    made = folder / "ready"
    corpus = str(folder / "corpus.jsonl.gz")
    mlm(["prepare", corpus, "--out", str(made / "store"), "--seq-len", "128", "--vocab-size", "512"])
    mlm(["train", corpus, "--out", str(made / "run"), "--model", "tiny", "--budget", "2steps", "--track", "none"])
    kind = ["--tokenizer", "wordpiece", "--vocab-size", "512"]
    mlm(["prepare", corpus, "--out", str(made / "pieces"), *kind])
    AutoTokenizer.from_pretrained(made / "run" / "model").save_pretrained(made / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(made / "pieces" / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    BertForMaskedLM(config).save_pretrained(made / "bert")
    tokenizer.save_pretrained(made / "bert")


def furnish(folder: Path) -> None:
    """Everything, in a few seconds."""
    corpora(folder)
    ready(folder)
