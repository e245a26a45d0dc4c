"""Which parameters are stepped how."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlm_pytorch.training.muon import Muon, orthogonalize

_BETAS = (0.9, 0.98)
Parts = tuple[int, int]  # equal matrices in one, along the rows and along the columns
_WHOLE = (1, 1)
# A bare parameter of such a name is looked up by index or added, and multiplies nothing.
_TABLE = re.compile(r"emb|pos|token|table|bias|memory|query|prompt", re.IGNORECASE)


@dataclass(frozen=True)
class ParameterRoles:
    """A model's trainable parameters by what they do, each once however often it is tied.

    Attributes:
        matrices: inner weights (rows, columns) by the parts that each is made of.
        filters: weights of more dimensions, such as a convolution's.
        embeddings: tables of tokens, positions or types, and the projection onto the vocabulary, tied or not.
        vectors: biases, and gains of normalizations.
    """

    matrices: dict[Parts, list[nn.Parameter]] = field(default_factory=dict)
    filters: list[nn.Parameter] = field(default_factory=list)
    embeddings: list[nn.Parameter] = field(default_factory=list)
    vectors: list[nn.Parameter] = field(default_factory=list)


def parameter_roles(model: nn.Module) -> ParameterRoles:
    """Sort the trainable parameters of any module by their kind of module, their shape and, where bare, their name.

    A parameter that plays two roles, as tied embeddings do, is an embedding.

    Example:
        >>> layers = nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 9)
        >>> roles = parameter_roles(nn.Sequential(*layers))
        >>> len(roles.matrices[1, 1]), len(roles.embeddings), len(roles.vectors)
        (1, 2, 4)
    """
    roles = ParameterRoles()
    output = _output_projection(model)
    owners = [
        (path, module, name, parameter)
        for path, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    tables = {id(parameter) for _, module, name, parameter in owners if _is_table(module, name) or parameter is output}
    seen: set[int] = set()
    for path, module, name, parameter in owners:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if sum(size != 1 for size in parameter.shape) < 2 or "Norm" in type(module).__name__:
            roles.vectors.append(parameter)
        elif id(parameter) in tables:
            roles.embeddings.append(parameter)
        elif parameter.ndim > 2:
            roles.filters.append(parameter)
        else:
            parts = _parts(model, path, name)
            fits = not any(size % count for size, count in zip(parameter.shape, parts, strict=True))
            roles.matrices.setdefault(parts if fits else _WHOLE, []).append(parameter)
    return roles


def _parts(model: nn.Module, path: str, name: str) -> Parts:
    """What the weight `name` of the module at `path` is made of, where that is known: in ModernBERT's layers (its own
    and ours) and in torch's attention, one matrix for each head's queries, keys, values and output.
    """
    within, _, called = path.rpartition(".")
    owner = model.get_submodule(within)
    if called == "Wi":
        return 2, 1
    if name == "in_proj_weight":
        return 3 * _num_heads(model.get_submodule(path)), 1
    if called == "Wqkv":
        return 3 * _num_heads(owner), 1
    if (called == "Wo" and hasattr(owner, "Wqkv")) or (called == "out_proj" and hasattr(owner, "in_proj_weight")):
        return 1, _num_heads(owner)
    return _WHOLE


def _num_heads(attention: nn.Module) -> int:
    """Heads of a module; 1, all as one, where it does not say."""
    config = getattr(attention, "config", None)
    return getattr(attention, "num_heads", None) or getattr(config, "num_attention_heads", None) or 1


def _is_table(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return True
    of_torch = type(module).__module__.startswith("torch.nn")  # whose weights we know: bias_k, in_proj_weight, …
    return not of_torch and name != "weight" and bool(_TABLE.search(name))


def _output_projection(model: nn.Module) -> Tensor | None:
    """The weight that gives logits: the model's word for it, or the last Linear as wide as the first embedding."""
    named = getattr(model, "get_output_embeddings", None)
    output = named() if callable(named) else None
    if not isinstance(output, nn.Linear):
        embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
        wide = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear) and embedding and module.out_features == embedding.num_embeddings
        ]
        output = wide[-1] if wide else None
    return output.weight if output is not None else None


def build_optimizers(
    model: nn.Module,
    kind: Literal["muon", "adamw"],
    lr: float,
    weight_decay: float,
    *,
    embedding_lr: float = 1.0,
    orthogonalize: Callable[[Tensor], Tensor] = orthogonalize,
) -> list[torch.optim.Optimizer]:
    """Optimizers for a model, each parameter in exactly one.

    "muon": Muon for the matrices inside the layers and the head, fused AdamW for embeddings, output projection, norms,
    biases and convolutions. Both make updates of about the same size, so one learning rate serves both.
    "adamw": fused AdamW for all. Either way only matrices and convolutions decay.

    Args:
        model: any module; `parameter_roles` says what is what.
        kind: as above.
        lr: peak learning rate.
        weight_decay: decoupled.
        embedding_lr: the embeddings' learning rate, as a multiple of `lr`.
        orthogonalize: Muon's.

    Raises:
        ValueError: a model without trainable parameters.
    """
    roles = parameter_roles(model)
    optimizers: list[torch.optim.Optimizer] = []
    groups = [
        {"params": roles.filters, "weight_decay": weight_decay},
        {"params": roles.embeddings, "lr_scale": embedding_lr},
        {"params": roles.vectors},
    ]
    if kind == "muon" and roles.matrices:
        by_parts = [{"params": held, "parts": parts} for parts, held in roles.matrices.items()]
        optimizers.append(Muon(by_parts, lr=lr, weight_decay=weight_decay, orthogonalize=orthogonalize))
    else:
        groups.insert(0, {"params": [*chain(*roles.matrices.values())], "weight_decay": weight_decay})
    groups = [group for group in groups if group["params"]]
    if groups:
        adam: dict[str, Any] = {"betas": _BETAS, "eps": 1e-8, "fused": True, "weight_decay": 0.0}
        optimizers.append(torch.optim.AdamW(groups, lr=lr, **adam))
    if not optimizers:
        raise ValueError("the model has no trainable parameters; nothing could be learned")
    set_learning_rate(optimizers, lr)
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group the learning rate of this step, or its multiple of it (`lr_scale`)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


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
                # counts of steps as well: fused AdamW on CUDA takes them from there
                optimizer.state[parameters[name]][entry] = value.to(parameters[name].device)
