"""What a run is trained with where its options were left open: chosen from budget, device and corpus.

`docs/results/recipes.md` holds the measurements behind these choices, and says where there are none yet.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mlm_pytorch.encoder import PRESETS, num_parameters, preset
from mlm_pytorch.training.schedule import Budget

# Peak learning rates. Both optimizers make updates of about the same size, so one figure per shape serves any budget.
LEARNING_RATES = {"muon": 4e-3, "adamw": 2e-3}
_SMALL = ("nano", "tiny", "mini", "small")
_DEEP_LEARNING_RATES = {"muon": 1e-3, "adamw": 8e-4}  # base and large: ModernBERT's, not measured here

# The least number of tokens to train on for which a preset is chosen, and the least that its corpus must hold: below,
# a smaller one reaches a lower loss in the same time. The loss after so many tokens hardly depends on the shape until a
# shape is full, so the smallest that is not yet full wins. Nano and tiny were compared in equal time up to 630 s
# of one core: 0.036 and 0.019 nats apart, so they should meet at about 10M tokens (docs/results/recipes.md). What is
# above is estimated.
_LEAST_TOKENS = {
    "nano": (0, 0),
    "tiny": (10e6, 0),
    "mini": (40e6, 0),
    "small": (150e6, 3e6),
    "base": (3e9, 100e6),
    "large": (30e9, 1e9),
}
_USED = 0.3  # share of a GPU's matmul peak that training reaches: 0.3 for 17M parameters on an H200, 0.5 for base
# Seconds of a core per token outside matrix products: for any shape, and for each layer and unit of width. Seen on two
# machines whose matmul peaks differ fourfold, for nano to 12 layers of 768; the forecast is within a quarter for all.
_REST, _REST_OF_WIDTH = 46e-6, 0.1e-6
_MASKED = 0.225  # mean share of positions that meet the vocabulary
_VOCABULARY = 16_384  # for the estimate: the vocabulary itself is not known before the corpus is read
# A long run takes larger packs: 4M tokens of nano end alike, at 5.03 nats with 4,096 a step and 5.04 with 2,048, and
# take a quarter less time with AMX (docs/results/speed.md); 10M end at 4.49 with 4,096 (results/recipes.json),
# and ended at 4.60 with 2,048, measured once and not kept. 1.2M tokens of mini end half a nat worse
# (docs/results/what_failed.md).
_LONG_RUN, _LONG_RUNS_PACK = 4e6, 4_096
# A GPU is busy with large packs only (benchmarks/gpu.py), and a run learns from a number of steps: packs are as large
# as leaves it so many, which is what a CPU's longer runs take. Not measured in losses yet.
_GPU_PACKS, _GPU_STEPS = (16_384, 131_072), 2_500
_OF_UNKNOWN_SPEED = "mini"


@dataclass(frozen=True)
class Recipe:
    """What is chosen for a run.

    Attributes:
        model: name of a preset.
        seq_len: longest piece in tokens.
        pack_tokens: tokens of a pack.
        lr: peak learning rate.
    """

    model: str
    seq_len: int
    pack_tokens: int
    lr: float

    def values(self) -> dict[str, Any]:
        """By name of the option."""
        return asdict(self)


def choose(
    budget: Budget,
    device: torch.device,
    *,
    peak: float = 0.0,
    processes: int = 1,
    corpus_tokens: int | None = None,
    optimizer: str = "muon",
    model: str | None = None,
    seq_len: int | None = None,
) -> Recipe:
    """Choose what was left open, so that the loss is lowest when the budget is spent.

    The shape is the largest preset that can be trained on enough tokens: those that the budget names, or those that the
    device can read in the time. On a CPU that is not told by its matmul peak alone: small shapes spend most of a step
    outside matrix products.

    Args:
        budget: how long to train.
        device: where.
        peak: matrix products of the device in FLOP/s, as `throughput.measure_peak` measures them; needed for budgets of
            time only, of which nothing can be told without.
        processes: that train together, each on such a device.
        corpus_tokens: tokens of the corpus, where known; needed for budgets of epochs.
        optimizer: "muon" or "adamw".
        model: the preset, where it is given. Any other name gets the values of `base`; `mlm train` does not ask here
            for such models, whose rate is that of `gentle_values`.
        seq_len: longest piece, where it is given.

    Example:
        >>> chosen = choose(Budget.parse("8Mtokens"), torch.device("cpu"))
        >>> chosen.model, chosen.pack_tokens, chosen.lr
        ('nano', 4096, 0.004)
        >>> choose(Budget.parse("30s"), torch.device("cpu"), peak=100e9).model
        'nano'
    """
    name = model or _shape(budget, device, peak, processes, corpus_tokens)
    trained_like = PRESETS.get(name, PRESETS["base"])
    seq_len = seq_len or trained_like.seq_len
    pack_tokens = max(trained_like.pack_tokens, seq_len)
    tokens = _tokens(budget, name, device, peak, processes, corpus_tokens) if name in PRESETS else None
    if device.type == "cuda":
        smallest, largest = _GPU_PACKS
        fitting = int((tokens or 0) / (_GPU_STEPS * processes))
        pack_tokens = max(pack_tokens, min(largest, max(smallest, 1 << max(0, fitting.bit_length() - 1))))
    elif tokens is not None and tokens >= _LONG_RUN:
        pack_tokens = max(pack_tokens, _LONG_RUNS_PACK)
    rates = LEARNING_RATES if name in _SMALL else _DEEP_LEARNING_RATES
    return Recipe(name, seq_len, pack_tokens, rates[optimizer])


def _shape(budget: Budget, device: torch.device, peak: float, processes: int, corpus_tokens: int | None) -> str:
    chosen = "tiny"
    for name, (least_tokens, least_corpus) in _LEAST_TOKENS.items():
        tokens = _tokens(budget, name, device, peak, processes, corpus_tokens)
        if tokens is None:
            return _OF_UNKNOWN_SPEED
        if device.type == "cpu" and name in ("base", "large"):
            break
        if tokens >= least_tokens and (corpus_tokens is None or corpus_tokens >= least_corpus):
            chosen = name
    return chosen


def _tokens(
    budget: Budget, name: str, device: torch.device, peak: float, processes: int, corpus_tokens: int | None
) -> float | None:
    """Tokens that a preset would be trained on; None where that cannot be told."""
    match budget.unit:
        case "seconds":
            return budget.amount * processes / _seconds_per_token(name, device, peak) if peak else None
        case "steps":
            return budget.amount * PRESETS[name].pack_tokens
        case "tokens":
            return budget.amount
        case "epochs":
            return None if corpus_tokens is None else budget.amount * corpus_tokens


def _seconds_per_token(name: str, device: torch.device, peak: float) -> float:
    products = flops_per_token(name, _VOCABULARY) / peak
    if device.type != "cpu":
        return products / _USED
    shape = PRESETS[name]
    rest = _REST + _REST_OF_WIDTH * shape.num_hidden_layers * shape.hidden_size
    return products + rest / torch.get_num_threads()


def flops_per_token(name: str, vocab_size: int, masked: float = _MASKED) -> float:
    """Floating-point operations per token of a training step of a preset, forward and backward, in matrix products.

    Each weight costs 6: two for the product, forward and for both gradients. The vocabulary is met by the masked tokens
    only; attention itself, small at these lengths, is left out.

    Example:
        >>> round(flops_per_token("mini", 16_384) / 1e6, 1)
        25.1
    """
    config = preset(name, vocab_size=vocab_size)
    vocabulary = config.vocab_size * config.hidden_size
    head = config.hidden_size**2
    inner = num_parameters(config) - vocabulary - head
    return 6 * (inner + masked * (vocabulary + head))
