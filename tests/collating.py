"""A small tokenizer, and what a collated batch held before it was masked."""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = [f"w{i}" for i in range(45)]  # ids 5 .. 49


def make_tokenizer(vocab=(*SPECIAL, *WORDS), **kwargs):
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(names | kwargs))


def examples_of(*lengths):
    """Dicts with [CLS] words [SEP], of the given total lengths."""
    rows = []
    for seed, length in enumerate(lengths):
        words = np.random.default_rng(seed).integers(5, 50, length - 2).tolist()
        rows.append({"input_ids": [CLS, *words, SEP]})
    return rows


def make_wordpiece_tokenizer():
    pieces = ["un", "##believ", "##able", "play", "##ing", "go"]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate([*SPECIAL, *pieces])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
