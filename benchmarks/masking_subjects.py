"""What `masking.py` measures on, and against: texts, twelve tokenizers, the seed's package, transformers' collator."""

import gzip
import importlib.util
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts

ROOT = Path(__file__).parents[1]
SEED = "mlm-pytorch==0.1.0"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def multilingual() -> list[str]:
    text = (ROOT / "tests" / "masking" / "multilingual.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def scrambled(lines: list[str], count: int) -> list[str]:
    """Snippets of all scripts in random order, with and without blanks: more kinds of neighbours than any text has."""
    dice = random.Random(0)
    snippets = [snippet for line in lines for snippet in line.split(" ")]
    gaps = [" "] * 6 + ["", "", "\n", "  ", ", ", "'s "]
    return ["".join(dice.choice(snippets) + dice.choice(gaps) for _ in range(12)) for _ in range(count)]


def texts(data: Path, split: str, count: int | None) -> list[str]:
    path = data / f"{split}.jsonl.gz"
    if not path.exists():
        return multilingual() * 20
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, count)]


def families(data: Path, vocab_size: int) -> Iterator[tuple[str, Tokenizer]]:
    """Small tokenizers of each family, trained on part of the corpus and the multilingual lines."""
    corpus = texts(data, "train", 3000) + multilingual()
    ready = data / "tokenizer-16k" / "tokenizer.json"
    if ready.exists():
        yield "byte-level BPE, the corpus's own", Tokenizer.from_file(str(ready))
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": SPECIALS, "show_progress": False}

    def trained(model: Any, cut: Any, trainer: Any, normalizer: Any = None) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = cut
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(corpus, trainer)
        return tokenizer

    wordpiece = models.WordPiece(unk_token="[UNK]"), cuts.BertPreTokenizer(), trainers.WordPieceTrainer(**common)
    yield "WordPiece", trained(*wordpiece, normalizers.BertNormalizer())
    digits = cuts.Digits(individual_digits=True)
    gpt4 = cuts.Split(Regex(GPT4), "isolated")
    for name, cut in {
        "byte-level BPE": cuts.ByteLevel(add_prefix_space=False),
        "byte-level BPE, prefix space": cuts.ByteLevel(add_prefix_space=True),
        "byte-level BPE, single digits": cuts.Sequence([digits, cuts.ByteLevel(add_prefix_space=False)]),
        "byte-level BPE, GPT-4's cuts": cuts.Sequence([gpt4, cuts.ByteLevel(add_prefix_space=False, use_regex=False)]),
    }.items():
        yield (
            name,
            trained(models.BPE(), cut, trainers.BpeTrainer(**common, initial_alphabet=cuts.ByteLevel.alphabet())),
        )
    for name, cut in {
        "Unigram": cuts.Metaspace(),
        "Unigram, no prefix space": cuts.Metaspace(prepend_scheme="never"),
        "Unigram, blanks first": cuts.Sequence([cuts.WhitespaceSplit(), cuts.Metaspace()]),
        "Unigram, punctuation and digits apart": cuts.Sequence([cuts.Metaspace(), cuts.Punctuation(), digits]),
    }.items():
        yield name, trained(models.Unigram(), cut, trainers.UnigramTrainer(**common, unk_token="[UNK]"))
    yield "BPE, Metaspace", trained(models.BPE(unk_token="[UNK]"), cuts.Metaspace(), trainers.BpeTrainer(**common))
    suffix = {"end_of_word_suffix": "</w>"}
    bpe = models.BPE(unk_token="[UNK]", **suffix)
    yield "BPE, word suffix", trained(bpe, cuts.BertPreTokenizer(), trainers.BpeTrainer(**common, **suffix))


@cache
def all_families(data: Path, vocab_size: int) -> list[tuple[str, Tokenizer]]:
    """`families`, trained once for all parts."""
    return list(families(data, vocab_size))


def seed_package(folder: Path) -> ModuleType:
    """The seed's published module under a name of its own."""
    file = folder / "mlm_pytorch" / "mlm_pytorch.py"
    if not file.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), SEED]
        subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("seed_mlm", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Seen(Exception):
    """Carries what the transformer was shown, so that the seed's forward ends where its masking does."""


def seed_shows(seed: ModuleType, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    def transformer(shown: torch.Tensor) -> torch.Tensor:
        raise Seen(shown)

    try:
        seed.MLM(transformer, **settings)(ids)
    except Seen as seen:
        return seen.args[0]
    raise AssertionError("the seed's class did not call its transformer")


def fast_tokenizer(tokenizer: Tokenizer) -> tuple[Any, int]:
    from transformers import PreTrainedTokenizerFast

    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    return wrapped, len(wrapped)


def hf_collator(tokenizer: Any, **settings: Any) -> Any:
    from transformers import DataCollatorForLanguageModeling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it turns random replacement off is a row of its own above
        return DataCollatorForLanguageModeling(tokenizer, **({"mlm_probability": 0.15} | settings))


def features(tokenizer: Tokenizer, data: Path, rows: int, length: int) -> list[dict[str, Any]]:
    """Rows of one length, with what transformers' whole-word masking needs beside the ids."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    base = 0
    for encoding in tokenizer.encode_batch(texts(data, "valid", 4000), add_special_tokens=False):
        ids += encoding.ids
        offsets += [(base + start, base + end) for start, end in encoding.offsets]
        base = offsets[-1][1] + 1 if offsets else 0
        if len(ids) >= rows * length:
            break
    repeats = -(-rows * length // len(ids))
    ids, offsets = (ids * repeats)[: rows * length], (offsets * repeats)[: rows * length]
    return [
        {
            "input_ids": ids[at : at + length],
            "offset_mapping": offsets[at : at + length],
            "special_tokens_mask": [0] * length,
        }
        for at in range(0, rows * length, length)
    ]
