"""What a model has learned, measured."""

from mlm_pytorch.evaluation.breakdown import Breakdown, Group
from mlm_pytorch.evaluation.fill import Candidate, Filled, MaskedPosition, fill
from mlm_pytorch.evaluation.masked import MaskedResult, bits_per_byte, masked_loss
from mlm_pytorch.evaluation.minimal_pairs import MinimalPairsResult, PairAccuracy, minimal_pairs
from mlm_pytorch.evaluation.padded import PaddedModel
from mlm_pytorch.evaluation.probe import ProbeResult, probe
from mlm_pytorch.evaluation.pseudo_likelihood import SentenceScore, pseudo_log_likelihood
from mlm_pytorch.evaluation.stream import PieceStream

__all__ = [
    "Breakdown",
    "Candidate",
    "Filled",
    "Group",
    "MaskedPosition",
    "MaskedResult",
    "MinimalPairsResult",
    "PaddedModel",
    "PairAccuracy",
    "PieceStream",
    "ProbeResult",
    "SentenceScore",
    "bits_per_byte",
    "fill",
    "masked_loss",
    "minimal_pairs",
    "probe",
    "pseudo_log_likelihood",
]
