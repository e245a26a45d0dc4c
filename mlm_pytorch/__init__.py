"""Masked language modelling for any transformer and any corpus of sequences.

    from mlm_pytorch import MLM
    loss = MLM(transformer, mask_token_id=2, pad_token_id=0)(token_ids)

or, from files to a Hugging Face model: `mlm train corpus.jsonl.gz --out runs/mine --budget 20m`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlm_pytorch.masking import RateSchedule
    from mlm_pytorch.objective import MLM, MLMOutput
    from mlm_pytorch.tokens import IGNORE_INDEX, SpecialTokens, WordTable

__all__ = ["IGNORE_INDEX", "MLM", "MLMOutput", "RateSchedule", "SpecialTokens", "WordTable"]
__version__ = "1.0.0"

_HOMES = {
    "masking": ("RateSchedule",),
    "objective": ("MLM", "MLMOutput"),
    "tokens": ("IGNORE_INDEX", "SpecialTokens", "WordTable"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `mlm --help` needs none of them, and torch takes seconds."""
    for home, names in _HOMES.items():
        if name == home or name in names:
            module = import_module(f"{__name__}.{home}")
            globals()[name] = module if name == home else getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})
