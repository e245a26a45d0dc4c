"""The objective: corrupt, run the transformer, and score the selected positions only."""

from mlm_pytorch.objective.head import find_head, logits_at
from mlm_pytorch.objective.loss import cross_entropy
from mlm_pytorch.objective.mlm import MLM, MLMOutput

__all__ = ["MLM", "MLMOutput", "cross_entropy", "find_head", "logits_at"]
