"""Find a transformer's output head, and let only some positions through it.

A head is named by its path in the transformer, such as ``"cls"`` or ``"to_logits"``: names survive pickling, copying
and wrapping, where references to modules would not. While the transformer runs, hidden states on their way into the
head are gathered at the wanted positions; afterwards nothing is left on the transformer.
"""

# B batch, L length, T = B * L tokens, K selected positions, D width, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# What may be given where a head is meant: the module itself, or its dotted name.
Head = nn.Module | str


def find_head(transformer: nn.Module, num_tokens: int | None = None) -> Head | None:
    """The module that turns hidden states into logits, found by what the transformer offers.

    In this order: an attribute ``output_head`` (the built-in encoder), ``get_output_embeddings()`` (Hugging Face),
    ``to_logits`` (x-transformers: a module, or for tied embeddings a plain function), the last ``nn.Linear`` that is
    as wide as the vocabulary.

    Args:
        transformer: any module.
        num_tokens: the vocabulary's size. Without it, the size of the first embedding table; since that may be one of
            positions, a Linear as wide then counts only where it is the last of all, or tied to a table.

    Returns:
        The module; the attribute's name where the head is a plain function; None where nothing was found. This is a
        guess: ``verify_head`` finds out whether it is right.

    >>> find_head(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10)))
    Linear(in_features=4, out_features=10, bias=True)
    """
    head = getattr(transformer, "output_head", None)
    if isinstance(head, nn.Module | str):
        return head
    get_output_embeddings = getattr(transformer, "get_output_embeddings", None)
    if callable(get_output_embeddings) and isinstance(head := get_output_embeddings(), nn.Module):
        return head
    head = getattr(transformer, "to_logits", None)
    if isinstance(head, nn.Module) and not isinstance(head, nn.ModuleList):
        return head
    if callable(head) and not isinstance(head, nn.Module):
        return "to_logits"
    tables = [m for m in transformer.modules() if isinstance(m, nn.Embedding)]
    width = num_tokens if num_tokens is not None else next((m.num_embeddings for m in tables), None)
    linears = [m for m in transformer.modules() if isinstance(m, nn.Linear)]
    found = next((m for m in reversed(linears) if m.out_features == width), None)
    if found is None or num_tokens is not None:
        return found
    return found if found is linears[-1] or any(found.weight is m.weight for m in tables) else None


def head_width(transformer: nn.Module, head: Head | None) -> int | None:
    """How many logits a head gives per position, as far as its looks tell: its last Linear, or tied embeddings."""
    if head is None:
        return None
    module = resolve(transformer, head)
    if module is getattr(transformer, "output_head", None):
        module = transformer  # this is where its head begins; the vocabulary comes at the end of it
    if isinstance(module, nn.Module):
        widths = [part.out_features for part in module.modules() if isinstance(part, nn.Linear)]
    else:  # tied: as many as there are inputs
        widths = [part.num_embeddings for part in transformer.modules() if isinstance(part, nn.Embedding)][:1]
    return widths[-1] if widths else None


def resolve(transformer: nn.Module, head: Head) -> Any:
    """What a head's name stands for: a module, or a plain function. Raises ValueError for a name that leads nowhere."""
    if isinstance(head, nn.Module):
        return head
    target: Any = transformer
    for part in head.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise ValueError(
            f"head {head!r} is not in {type(transformer).__name__}; give a name that named_modules() lists"
        )
    return target


def name_of(transformer: nn.Module, head: Head) -> str:
    """A head's dotted name. Raises ValueError for a module that is no part of the transformer."""
    if isinstance(head, str):
        resolve(transformer, head)
        return head
    for name, module in transformer.named_modules():
        if module is head and name:
            return name
    raise ValueError(
        f"head {type(head).__name__} is not a part of {type(transformer).__name__}; give one of its modules, or a name"
    )


def logits_at(transformer: nn.Module, head: Head, positions_K: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a transformer, with only the given positions passing through its head.

    Costs a hook registered and removed; no device synchronisation. A transformer that `takes_positions` is told them.

    Args:
        transformer: the model; called as ``transformer(*args, **kwargs)``.
        head: the module (or its dotted name) before which hidden states are gathered. It may be any module that
            treats positions alone: the last projection, or a larger block that ends with it.
        positions_K: (K,) int64, indices into the flattened leading dimensions of the hidden states: B * L for
            (B, L, D), T for flat (T, D).

    Returns:
        (K, V) logits.
    """
    if takes_positions(transformer):
        return logits_of(transformer(*args, positions=positions_K, **kwargs), transformer)
    with gathered_before(transformer, head, positions_K):
        output = transformer(*args, **kwargs)
    logits = logits_of(output, transformer)
    return logits.reshape(-1, logits.shape[-1])


def takes_positions(transformer: nn.Module) -> bool:
    """Whether a transformer, or what a wrapper of torch's holds, computes logits at `positions=` (K,) by itself.

    The built-in encoder does, and leaves out more than the head: what its last layer computes elsewhere.
    """
    return getattr(bare_module(transformer), "takes_positions", False)


def bare_module(transformer: nn.Module) -> nn.Module:
    """The transformer itself, out of what torch.compile, DistributedDataParallel and FSDP put around it."""
    for part in seen_from_outside(transformer, "").split(".")[:-1]:
        transformer = getattr(transformer, part)
    return transformer


def seen_from_outside(transformer: nn.Module, name: str) -> str:
    """A name in the bare transformer as its wrappings have it.

    >>> seen_from_outside(torch.compile(nn.Linear(2, 2)), "weight")
    '_orig_mod.weight'
    """
    prefix = ""
    while True:
        # Among its own parts: each wrapper answers for what it wraps, so hasattr() would see another one through it.
        held = [part for part in ("_orig_mod", "_fsdp_wrapped_module") if part in transformer._modules]
        if isinstance(transformer, nn.parallel.DistributedDataParallel):
            held = ["module"]
        if not held:
            return prefix + name
        transformer, prefix = getattr(transformer, held[0]), f"{prefix}{held[0]}."


@contextmanager
def gathered_before(transformer: nn.Module, head: Head, positions_K: Tensor) -> Iterator[None]:
    """Within this context, the head receives the given positions only: (1, K, D) of (B, L, D), (K, D) of (T, D)."""
    with changed_before(transformer, head, lambda hidden: _gather(hidden, positions_K)):
        yield


@contextmanager
def changed_before(transformer: nn.Module, head: Head, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context, the head receives other hidden states: what `change` makes of them."""
    target = resolve(transformer, head)
    if isinstance(target, nn.Module):

        def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return _change_first(change, args, kwargs)

        handle = target.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
    else:
        assert isinstance(head, str)
        owner_name, _, attribute = head.rpartition(".")
        owner = resolve(transformer, owner_name) if owner_name else transformer
        with _replaced(owner, attribute, _changing(target, change)):
            yield


def _changing(function: Callable[..., Any], change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def changing(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _change_first(change, args, kwargs)
        return function(*args, **kwargs)

    return changing


@contextmanager
def _replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    was_own = attribute in vars(owner)
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if was_own:
            setattr(owner, attribute, before)
        else:  # a method of the class, which our attribute had hidden
            delattr(owner, attribute)


def _change_first(change: Callable[[Tensor], Tensor], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Change the first float tensor among the arguments: the hidden states."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            return (*args[:index], change(value), *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return args, {**kwargs, name: change(value)}
    raise ValueError("the head got no hidden states to gather from; give another module as head=")


def _gather(hidden: Tensor, positions_K: Tensor) -> Tensor:
    # index_select, since its backward is one index_add
    rows_KD = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions_K)
    return rows_KD if hidden.dim() == 2 else rows_KD.unsqueeze(0)


def logits_of(output: Any, transformer: nn.Module) -> Tensor:
    """The logits in what a transformer returned: a float tensor, or its ``logits``. Raises ValueError otherwise."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() < 2:
        raise ValueError(
            f"{type(transformer).__name__} returned {type(output).__name__}, which is neither a tensor of logits nor "
            "an object with .logits; wrap it in a module that returns logits"
        )
    return logits
