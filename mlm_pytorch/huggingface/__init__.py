"""The border to Hugging Face: a masking collator for its Trainer, and folders that its classes load."""

from mlm_pytorch.huggingface.collator import MLMCollator
from mlm_pytorch.huggingface.folder import check_export, copy_export, export_encoder, load_encoder, model_folder
from mlm_pytorch.huggingface.masked_lm import load_masked_lm, max_positions
from mlm_pytorch.huggingface.stand_in import export_masked_lm, fetch_masked_lm

__all__ = [
    "MLMCollator",
    "check_export",
    "copy_export",
    "export_encoder",
    "export_masked_lm",
    "fetch_masked_lm",
    "load_encoder",
    "load_masked_lm",
    "max_positions",
    "model_folder",
]
