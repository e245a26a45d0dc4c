"""Masked language modelling for any transformer and any corpus of sequences.

    from mlm_pytorch import MLM
    loss = MLM(transformer, mask_token_id=2, pad_token_id=0)(token_ids)

or, from files to a Hugging Face model: `mlm train corpus.jsonl.gz --out runs/mine --budget 20m`.
"""

from mlm_pytorch.masking import RateSchedule
from mlm_pytorch.objective import MLM, MLMOutput
from mlm_pytorch.tokens import IGNORE_INDEX, SpecialTokens, WordTable

__all__ = ["IGNORE_INDEX", "MLM", "MLMOutput", "RateSchedule", "SpecialTokens", "WordTable"]
__version__ = "1.0.0"
