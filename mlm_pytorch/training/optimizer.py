"""Which parameters are stepped how."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlm_pytorch.training.muon import Muon, orthogonalize

_BETAS = (0.9, 0.98)
_FUSED = {"Wqkv": 3, "Wi": 2}  # modules of the built-in encoder whose weight is several matrices in one


def build_optimizers(
    model: nn.Module,
    kind: Literal["muon", "adamw"],
    lr: float,
    weight_decay: float,
    *,
    orthogonalize: Callable[[Tensor], Tensor] = orthogonalize,
) -> list[torch.optim.Optimizer]:
    """Optimizers for a model, each parameter in exactly one.

    "muon": Muon for the matrices inside the layers and the head, fused AdamW for embeddings, output projection, norms
    and biases. Both make updates of about the same size, so one learning rate serves both.
    "adamw": fused AdamW for all. Only matrices inside layers and head decay.

    `orthogonalize` is Muon's.

    Raises:
        ValueError: a model without trainable parameters.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = getattr(model, "decoder", None)
    if isinstance(output, nn.Linear):
        embeddings.add(id(output.weight))
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameters; nothing could be learned")
    matrices = [p for p in trainable if p.ndim == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    others = [p for p in trainable if id(p) not in chosen]
    adam: dict[str, Any] = {"lr": lr, "betas": _BETAS, "eps": 1e-8, "fused": True}
    optimizers: list[torch.optim.Optimizer] = []
    if matrices and kind == "muon":
        names = {id(p): name for name, p in model.named_parameters()}
        by_parts: dict[int, list[nn.Parameter]] = {}
        for parameter in matrices:
            by_parts.setdefault(_FUSED.get(names[id(parameter)].split(".")[-2], 1), []).append(parameter)
        groups = [{"params": held, "parts": parts} for parts, held in by_parts.items()]
        optimizers.append(Muon(groups, lr=lr, weight_decay=weight_decay, orthogonalize=orthogonalize))
    elif matrices:
        optimizers.append(torch.optim.AdamW(matrices, weight_decay=weight_decay, **adam))
    if others:
        optimizers.append(torch.optim.AdamW(others, weight_decay=0.0, **adam))
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group the learning rate of this step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by parameter name, as `name//entry`, ready for safetensors."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(parameter)]}//{entry}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer], saved: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        ValueError: state of other parameters than the model's.
    """
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name, _, entry = key.partition("//")
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            raise ValueError(
                f"the optimizer's state for {name!r} does not fit the model; the checkpoint is of another shape"
            )
        for optimizer in optimizers:
            if any(parameters[name] is p for group in optimizer.param_groups for p in group["params"]):
                target = value.to(parameters[name].device) if value.ndim else value
                optimizer.state[parameters[name]][entry] = target
