"""The border to Hugging Face: a masking collator for its Trainer, and folders that its classes load."""

from mlm_pytorch.huggingface.collator import MLMCollator
from mlm_pytorch.huggingface.export import CheckedExport, check_finite, export_encoder, export_masked_lm
from mlm_pytorch.huggingface.folder import copy_export, load_encoder, model_folder
from mlm_pytorch.huggingface.hub import fetch_masked_lm
from mlm_pytorch.huggingface.masked_lm import load_masked_lm, max_positions

__all__ = [
    "CheckedExport",
    "MLMCollator",
    "check_finite",
    "copy_export",
    "export_encoder",
    "export_masked_lm",
    "fetch_masked_lm",
    "load_encoder",
    "load_masked_lm",
    "max_positions",
    "model_folder",
]
