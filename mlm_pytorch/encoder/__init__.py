"""The built-in encoder: ModernBERT's architecture over flat packs and padded batches."""

from mlm_pytorch.encoder.config import EncoderConfig
from mlm_pytorch.encoder.encoder import Encoder
from mlm_pytorch.encoder.presets import PRESETS, Preset, num_parameters, preset

__all__ = ["PRESETS", "Encoder", "EncoderConfig", "Preset", "num_parameters", "preset"]
