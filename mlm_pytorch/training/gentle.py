"""Gentler defaults, for models that have learned something already, and safe ones for modules that we do not know."""

from typing import Any

# The rates that encoders are trained with from scratch fall about as their width rises: 2e-3 at a width of 256 (our
# presets), 6e-4 at 768 (BERT, RoBERTa). A model that is continued gets a third of that: enough to learn a domain, and
# little enough that the first steps, whose optimizer knows no moments yet, undo nothing. Gururangan et al. 2020 (arXiv
# 2004.10964, appendix) adapt with a warm-up of 6% and a linear decay.
_RATE_TIMES_WIDTH = 0.5
_NARROWEST = 256  # below it, rates rise no further
_CONTINUED = 1 / 3


def gentle_values(width: int, *, continued: bool) -> dict[str, Any]:
    """What is chosen, where an option was left open, for a model that is not one of our presets.

    Args:
        width: of its hidden states.
        continued: whether it has been trained before; else it is a new module of the user's own.

    Returns:
        By name of the option: `optimizer`, `lr`, and for a continued model `warmup` and `decay`.

    >>> gentle_values(768, continued=True)
    {'optimizer': 'adamw', 'lr': 0.00022, 'warmup': 0.06, 'decay': 0.94}
    """
    lr = float(f"{_RATE_TIMES_WIDTH / max(width, _NARROWEST) * (_CONTINUED if continued else 1):.1e}")
    values: dict[str, Any] = {"optimizer": "adamw", "lr": lr}
    return values | ({"warmup": 0.06, "decay": 0.94} if continued else {})
