"""Train, load, build and judge tokenizers.

train_tokenizer: texts -> Tokenizer        of a kind that is named, or that the texts call for
load_tokenizer: folder -> Tokenizer        any fast Hugging Face tokenizer
tokenizer_for_ids: count -> Tokenizer      for corpora that are ids already
tokenizer_report: texts -> TokenizerReport what a tokenizer makes of a corpus; `TokenCounter` counts batch by batch
"""

from mlm_pytorch.data.tokenizer.alphabets import TOKENIZER_KINDS, TokenizerKind, parse_kind, tokenizer_for_ids
from mlm_pytorch.data.tokenizer.loading import load_tokenizer, make_tokenizer_of_files
from mlm_pytorch.data.tokenizer.record import Tokenizer
from mlm_pytorch.data.tokenizer.report import TokenCounter, TokenizerReport, count_words, tokenizer_report
from mlm_pytorch.data.tokenizer.sample import TextSample, sample_texts
from mlm_pytorch.data.tokenizer.training import choose_vocab_size, train_tokenizer

__all__ = [
    "TOKENIZER_KINDS",
    "TextSample",
    "TokenCounter",
    "Tokenizer",
    "TokenizerKind",
    "TokenizerReport",
    "choose_vocab_size",
    "count_words",
    "load_tokenizer",
    "make_tokenizer_of_files",
    "parse_kind",
    "sample_texts",
    "tokenizer_for_ids",
    "tokenizer_report",
    "train_tokenizer",
]
