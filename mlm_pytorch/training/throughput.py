"""How well a device is used: the operations of a step, and the most that the device does in matrix products."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_MEASURE_SECONDS = 0.25


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of training, forward and backward.

    Attributes:
        per_token: of everything before the vocabulary.
        per_target: of the output projection, which selected positions alone meet.
    """

    per_token: float
    per_target: float

    def of(self, num_tokens: int, num_targets: int) -> float:
        """Of a step."""
        return self.per_token * num_tokens + self.per_target * num_targets


def flops_per_token(model: nn.Module, *, num_tokens: int, piece_length: float) -> Cost:
    """What training a model takes: 6 per weight of a matrix that a token meets, and attention's products.

    Matrix products alone are counted, two operations per weight forward, four backward (Kaplan et al. 2020,
    arXiv 2001.08361, §2.1), and 12 per layer, width and attended token for attention. The last linear map that is as
    wide as the vocabulary is the output projection. Attention is left out where the model's `config` tells no layers
    and width.

    Args:
        model: any encoder.
        num_tokens: entries of the vocabulary.
        piece_length: the length of the piece that a token is in, on average over tokens.

    Example:
        >>> flops_per_token(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)), num_tokens=9,
        ...                 piece_length=8)
        Cost(per_token=96, per_target=216)
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    output = [module for module in linear if module.out_features >= num_tokens][-1:]
    matrices = sum(module.weight.numel() for module in linear if module not in output)
    config: Any = getattr(model, "config", None)
    width, layers = getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    kinds = getattr(config, "layer_types", None) or ("full_attention",) * layers
    window = getattr(config, "local_attention", None) or piece_length
    attended = sum(min(piece_length, window) if kind == "sliding_attention" else piece_length for kind in kinds)
    attention = round(12 * width * attended)
    return Cost(6 * matrices + attention, 6 * sum(module.weight.numel() for module in output))


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Most operations a second that a device does in square matrix products of a dtype; takes about a quarter second.

    With the threads that torch now uses. Takes no random numbers, so that a run is the same with and without it.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.linspace(-1, 1, size, device=device, dtype=dtype).expand(size, size).contiguous()
    best, begun = float("inf"), time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - begun < _MEASURE_SECONDS:
        start = time.perf_counter()
        torch.matmul(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if rounds:  # the first sets kernels up
            best = min(best, time.perf_counter() - start)
        rounds += 1
    return 2 * size**3 / best
