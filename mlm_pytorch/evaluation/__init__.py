"""What a model has learned, measured."""

from mlm_pytorch.evaluation.fill import Candidate, Filled, MaskedPosition, fill
from mlm_pytorch.evaluation.masked import MaskedResult, masked_loss

__all__ = ["Candidate", "Filled", "MaskedPosition", "MaskedResult", "fill", "masked_loss"]
