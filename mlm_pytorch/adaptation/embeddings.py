"""Rows for new tokens in a model: the means of those of their old pieces, and every old row as it was.

A token that joins pieces means about what they mean together, so their mean is a better start than noise (Hewitt 2021,
"Initializing New Word Embeddings for Pretrained Language Models"; Gee et al. 2022, arXiv 2402.09977).
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlm_pytorch.encoder import Encoder

_MULTIPLE = 64  # of the rows of a table, for the matrix products


@torch.no_grad()
def extend_embeddings(model: nn.Module, pieces: Mapping[int, Sequence[int]]) -> nn.Module:
    """A model with a row for each new token, in the input's table, the output's, and the output's bias.

    Args:
        model: the built-in encoder, which stays as it is, or a masked language model of `transformers`, which is
            changed.
        pieces: the old ids that each new token joins, by new id.

    Returns:
        The model to go on with. All other rows are bit for bit what they were.

    Raises:
        ValueError: a model that cannot take more tokens.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old_rows = _rows(model)
    rows = -(-max(max(pieces) + 1, old_rows + 1) // _MULTIPLE) * _MULTIPLE
    grown = _larger_encoder(model, rows) if isinstance(model, Encoder) else _resized(model, rows)
    after = grown.state_dict()
    axes = {name: _axis(value, before[name]) for name, value in after.items() if value.shape != before[name].shape}
    if not axes:
        raise ValueError(
            f"{type(model).__name__} has no table of embeddings that can grow; leave --extend-vocabulary out"
        )
    ids = torch.tensor(list(pieces))
    others = torch.ones(old_rows, dtype=torch.bool)
    others[ids[ids < old_rows]] = False
    old = {name: value.movedim(axes.get(name, 0), 0) if value.ndim else value for name, value in before.items()}
    for name in axes:
        table: Tensor = after[name].movedim(axes[name], 0)
        means = torch.stack([old[name][list(joined)].float().mean(0) for joined in pieces.values()])
        table[:old_rows].copy_(old[name])
        table[ids] = means.to(table)
    for name, value in grown.state_dict().items():
        if name in axes:
            kept, was = value.movedim(axes[name], 0)[:old_rows][others], old[name][others]
        else:
            kept, was = value, before[name]
        assert torch.equal(kept, was), f"{name} changed in rows of old tokens"
    return grown


def _axis(grown: Tensor, before: Tensor) -> int:
    """Along which dimension a table has its tokens: the first, but for an output layer that is kept transposed."""
    return next(axis for axis, (new, old) in enumerate(zip(grown.shape, before.shape, strict=True)) if new != old)


def _rows(model: nn.Module) -> int:
    table: Any = model.model.embeddings.tok_embeddings if isinstance(model, Encoder) else _input_table(model)
    return table.weight.shape[0]


def _input_table(model: nn.Module) -> nn.Module:
    find: Any = getattr(model, "get_input_embeddings", None)
    table: Any = None if find is None else find()
    if not isinstance(getattr(table, "weight", None), Tensor):
        raise ValueError(
            f"{type(model).__name__} does not tell where its embeddings are; leave --extend-vocabulary out"
        )
    return table


def _larger_encoder(encoder: Encoder, rows: int) -> Encoder:
    grown = Encoder(dataclasses.replace(encoder.config, vocab_size=rows))
    own, old = grown.state_dict(), encoder.state_dict()
    for name, value in old.items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
        else:
            own[name][len(value) :].zero_()  # rows of no token
    if encoder.decoder.bias is not None:  # never likely
        grown.decoder.bias[len(encoder.decoder.bias) :] = encoder.decoder.bias.min()
    return grown.to(next(encoder.parameters()).device)


def _resized(model: nn.Module, rows: int) -> nn.Module:
    resize: Any = getattr(model, "resize_token_embeddings", None)
    if resize is None:
        raise ValueError(f"{type(model).__name__} cannot take more tokens; leave --extend-vocabulary out")
    before = dict(model.named_parameters(remove_duplicate=False))
    how = {"mean_resizing": False} if "mean_resizing" in inspect.signature(resize).parameters else {}
    with torch.random.fork_rng(devices=[]):
        try:
            resize(rows, **how)
        except NotImplementedError as error:
            raise ValueError(
                f"{type(model).__name__} cannot take more tokens ({error}); leave --extend-vocabulary out"
            ) from None
    _separate(model, before)
    return model


def _separate(model: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
    """Give those parameters one each that were two before and have become one.

    BERT's resizing makes one of the output's two biases, in models without tying as well: their weights are then saved
    without the second, which is looked for when they are loaded.
    """
    first: dict[nn.Parameter, str] = {}
    for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
        other = first.setdefault(parameter, name)
        if other != name and before.get(other) is not before.get(name):
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, nn.Parameter(parameter.detach().clone()))
