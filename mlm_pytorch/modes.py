"""A model in evaluation mode, and float32 products in full precision, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context a model is in evaluation mode; then each of its modules is put back as it was.

    `model.train()` would wake those that the user keeps in evaluation mode, such as a frozen trunk.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
        >>> _ = model[0].eval()
        >>> with evaluating(model):
        ...     print(model.training, model[1].training)
        False False
        >>> model.training, model[0].training, model[1].training
        (True, False, True)
    """
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


@contextmanager
def full_precision() -> Iterator[None]:
    """Within this context float32 matrix products are computed in float32; then all settings are put back.

    Both the older setting (`torch.set_float32_matmul_precision`) and those of each backend (`fp32_precision`): torch
    keeps them side by side, and refuses to read the older one where they have come to differ.

    Example:
        >>> torch.set_float32_matmul_precision("high")
        >>> with full_precision():
        ...     print(torch.get_float32_matmul_precision())
        highest
        >>> torch.get_float32_matmul_precision()
        'high'
        >>> torch.set_float32_matmul_precision("highest")
    """
    mkldnn: Any = torch.backends.mkldnn  # which becomes another object than type checkers see
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    of_each = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they differ, so that it stands at its default
        older = "highest"
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for backend, precision in zip(backends, of_each, strict=True):
            backend.fp32_precision = precision
