"""Pure tensor functions for masking: scores -> selection -> corruption. Knows nothing of models or files.

scores = hash_scores(seed, visits, pieces, positions)           # or draw_scores(input_ids)
selected = select_tokens(scores, input_ids, maskable, millionths(0.15))
corrupted = corrupt(input_ids, selected, scores, mask_token_id=4)
"""

from mlm_pytorch.masking.corruption import Corrupted, corrupt
from mlm_pytorch.masking.schedule import RateSchedule, mask_rate
from mlm_pytorch.masking.scores import draw_scores, flat_scores, hash_rates, hash_scores, millionths
from mlm_pytorch.masking.selection import (
    GPT_BERT_LENGTHS,
    NGRAM_LENGTHS,
    OF_WORDS,
    SELECTIONS,
    SPANBERT_LENGTHS,
    SpanLengths,
    max_selected,
    select_balanced,
    select_ngrams,
    select_spans,
    select_tokens,
    select_words,
)
from mlm_pytorch.masking.words import derive_words

__all__ = [
    "GPT_BERT_LENGTHS",
    "NGRAM_LENGTHS",
    "OF_WORDS",
    "SELECTIONS",
    "SPANBERT_LENGTHS",
    "Corrupted",
    "RateSchedule",
    "SpanLengths",
    "corrupt",
    "derive_words",
    "draw_scores",
    "flat_scores",
    "hash_rates",
    "hash_scores",
    "mask_rate",
    "max_selected",
    "millionths",
    "select_balanced",
    "select_ngrams",
    "select_spans",
    "select_tokens",
    "select_words",
]
