"""Adapt a trained model to a domain: how badly its tokenizer fits, and what to add to its vocabulary."""

from mlm_pytorch.adaptation.embeddings import extend_embeddings
from mlm_pytorch.adaptation.fit import FitReport, tokenizer_fit
from mlm_pytorch.adaptation.vocabulary import Extension, extend_vocabulary
from mlm_pytorch.adaptation.words import WordCounts, count_pieces

__all__ = [
    "Extension",
    "FitReport",
    "WordCounts",
    "count_pieces",
    "extend_embeddings",
    "extend_vocabulary",
    "tokenizer_fit",
]
