"""Masking and loss of padded batches: a flat pack's masks, laid out in rows, for any transformer that takes (B, L).

Shapes: B rows, L width, K selected positions, V vocabulary.
"""

import inspect
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mlm_pytorch.modes import evaluating
from mlm_pytorch.objective.head import logits_at, logits_of, seen_from_outside
from mlm_pytorch.objective.loss import cross_entropy_with_hits
from mlm_pytorch.objective.packs import Pack, PackMasker, moved, rounded_targets
from mlm_pytorch.objective.verify import SHAPE_ERRORS, first_line, verify_head
from mlm_pytorch.tokens import SpecialTokens

PAD_MASK_ARGUMENTS = ("attention_mask", "mask")  # what a transformer's own argument for it is called, True at tokens


class Rows(Protocol):
    """Whole pieces in rows, as `mlm_pytorch.data` builds them."""

    @property
    def attention_mask(self) -> np.ndarray:
        """(B, L) bool: True at tokens of pieces."""
        ...

    def flat(self) -> Pack:
        """The rows' pieces end to end, without padding."""
        ...


@dataclass(frozen=True)
class MaskedRows:
    """A padded batch as the model sees it, and what it must say.

    Attributes:
        input_ids: (B, L) int64, corrupted.
        attention_mask: (B, L) bool: True at tokens of pieces, False at padding.
        positions: (K,) int64, the selected positions, counted through the rows (row * L + column).
        labels: (K,) int64, the original ids there.
        num_tokens: tokens of pieces in the batch, padding not counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor
    num_tokens: int

    @property
    def num_targets(self) -> int:
        """K, known without asking the device."""
        return len(self.labels)

    @property
    def is_full(self) -> bool:
        """Whether no slot is padding, known without asking the device."""
        return self.num_tokens == self.input_ids.numel()

    def to(self, device: torch.device) -> "MaskedRows":
        """The same on another device; to CUDA through pinned memory, without waiting."""

        if device == self.input_ids.device:
            return self
        tensors = (self.input_ids, self.attention_mask, self.positions, self.labels)
        input_ids, attention_mask, positions, labels = moved(tensors, device)
        return MaskedRows(input_ids, attention_mask, positions, labels, self.num_tokens)


def mask_padded(masker: PackMasker, rows: Rows, mask_prob: int) -> MaskedRows:
    """Mask a padded batch at a rate of `mask_prob` millionths: for each piece what it gets in a flat pack, whatever
    the masker selects.
    """
    attention_mask = torch.from_numpy(rows.attention_mask)
    masked = masker(rows.flat(), mask_prob)
    input_ids = torch.full(attention_mask.shape, masker.special.pad_token_id)
    input_ids[attention_mask] = masked.input_ids
    positions = attention_mask.flatten().nonzero().squeeze(1)[masked.positions]
    return MaskedRows(input_ids, attention_mask, positions, masked.labels, masked.num_tokens)


# -- other people's models ---------------------------------------------------------------------------------------------


def known_pad_mask_argument(transformer: nn.Module) -> str | None:
    """The padding mask's name in libraries where it means True at tokens."""
    libraries = {base.__module__.partition(".")[0]: base for base in type(transformer).__mro__}
    if "transformers" in libraries or "mlm_pytorch" in libraries:
        return "attention_mask"
    return "mask" if "x_transformers" in libraries else None


def check_pad_token(transformer: nn.Module, mask_argument: str | None, pad_token_id: int) -> None:
    """Raise ValueError where a Hugging Face model's configuration names another padding id: RoBERTa's is 1, not 0."""
    own = getattr(getattr(transformer, "config", None), "pad_token_id", None)
    if mask_argument == "attention_mask" and isinstance(own, int) and own >= 0 and own != pad_token_id:
        name = type(transformer).__name__
        raise ValueError(
            f"pad_token_id {pad_token_id} is not the padding of {name}, whose config.pad_token_id is {own}; "
            f"pass pad_token_id={own}, or build the model with pad_token_id={pad_token_id} in its config"
        )


def pad_mask_argument(transformer: nn.Module) -> str | None:
    """The argument that tells a transformer where tokens are (True or 1) and where padding is: as its library calls it,
    or the first of `PAD_MASK_ARGUMENTS` that its `forward` names. None for one that takes no mask.

    >>> class Bag(nn.Module):
    ...     def forward(self, input_ids, mask=None): ...
    >>> pad_mask_argument(Bag()), pad_mask_argument(nn.Linear(2, 2))
    ('mask', None)
    """
    known = known_pad_mask_argument(transformer)
    if known is not None:
        return known
    named = inspect.signature(transformer.forward).parameters
    return next((name for name in PAD_MASK_ARGUMENTS if name in named), None)


def requires(transformer: nn.Module, argument: str) -> bool:
    """Whether a transformer cannot be called without an argument.

    >>> class Strict(nn.Module):
    ...     def forward(self, input_ids, mask): ...
    >>> requires(Strict(), "mask"), requires(Strict(), "attention_mask")
    (True, False)
    """
    named = inspect.signature(transformer.forward).parameters.get(argument)
    return named is not None and named.default is inspect.Parameter.empty


@dataclass(frozen=True)
class RowsInterface:
    """How a transformer that takes padded batches is called.

    Attributes:
        head: dotted name of the module before which selected positions are gathered; None where every position has to
            pass through the head.
        mask_argument: the name of its padding mask, None where it takes none.
        reason: why there is no such head.
        sees_padding: whether its logits at tokens change with what stands at padding, in spite of the mask. Known for
            modules of the user's own.
        needs_mask: whether it has to be given a mask where there is no padding as well.
        oddities: sentences about what it sees and should not, or should and does not (`sight`).
    """

    head: str | None
    mask_argument: str | None
    reason: str = ""
    sees_padding: bool = False
    needs_mask: bool = False
    oddities: tuple[str, ...] = ()

    def arguments(self, attention_mask: Tensor | None) -> dict[str, Any]:
        """The keyword arguments for a mask (B, L), bool; None where there is no padding."""
        if self.mask_argument is None or attention_mask is None:
            return {}
        integer = self.mask_argument == "attention_mask"
        return {self.mask_argument: attention_mask.long() if integer else attention_mask.bool()}

    def logits_at(
        self, model: nn.Module, positions_K: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits (K, V) at positions of rows (B, L), counted through the rows; by the model, or what is wrapped
        around it.
        """
        if attention_mask is None and self.needs_mask:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        arguments = self.arguments(attention_mask)
        if self.head is None:
            return logits_of(model(input_ids, **arguments), model).flatten(0, 1).index_select(0, positions_K)
        return logits_at(model, seen_from_outside(model, self.head), positions_K, input_ids, **arguments)


@torch.no_grad()
def sees_padding(transformer: nn.Module, input_ids: Tensor, is_token: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether logits at tokens change with what stands at padding: the mask is the wrong way round, or not heeded.

    Args:
        transformer: maps ids (B, L) to logits (B, L, V).
        input_ids: (B, L) with padding in some row, and a token in each.
        is_token: (B, L) bool.
        kwargs: the mask and whatever else the transformer takes.
    """
    other = torch.where(is_token, input_ids, input_ids[is_token][0])
    with torch.random.fork_rng(devices=[]), evaluating(transformer):
        first, second = (
            logits_of(transformer(ids, **kwargs), transformer)[is_token].float() for ids in (input_ids, other)
        )
    # A row of padding alone may give NaN, which is no match either.
    return not bool(((first - second).abs() <= 1e-3 * first.abs().max()).all())


def inspect_rows(model: nn.Module, special: SpecialTokens, max_seq_len: int | None = None) -> RowsInterface:
    """Find out how a transformer is called, by two rows of random tokens, one of which is padded.

    Costs a few forward passes and two backward ones over 32 tokens; see `verify_head`.

    Args:
        model: takes ids (B, L), and returns logits (B, L, V) or an object with `.logits`.
        special: what its vocabulary reserves.
        max_seq_len: the longest piece that it takes, or None where it sets no limit.

    Raises:
        ValueError: the model fails on such rows, as where an id has no embedding, or does not return logits (B, L, V),
            V at least as large as the vocabulary.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    drawable = special.drawable_ids()
    length = min(16, max_seq_len or 16)
    ids = drawable[torch.randint(len(drawable), (2, length), generator=generator)].to(device)
    mask_argument = pad_mask_argument(model)
    needs_mask = mask_argument is not None and requires(model, mask_argument)
    interface = RowsInterface(None, mask_argument, needs_mask=needs_mask)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if interface.mask_argument is not None:
        mask[1, length - length // 4 :] = False
        ids[~mask] = special.pad_token_id
    arguments = interface.arguments(mask)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(model):
        try:
            output = model(ids, **arguments)
        except SHAPE_ERRORS as error:
            cause = f"{first_line(error)}{_raised_in(error)}"
            remedy = "it has to take rows of any length up to the longest piece; mend it, or choose another model"
            if isinstance(error, IndexError):
                remedy = "give its embeddings a row for each token and each position"
            raise ValueError(
                f"{type(model).__name__} fails on {length} ids of a vocabulary of {special.num_tokens} ({cause}); "
                f"{remedy}"
            ) from error
    shape = tuple(logits_of(output, model).shape)
    if shape[:-1] != (2, length) or shape[-1] < special.num_tokens:
        raise ValueError(
            f"{type(model).__name__} returns logits {shape} for ids (2, {length}) of a vocabulary of "
            f"{special.num_tokens}; name a masked language model with its own tokenizer"
        )
    own_mask = interface.mask_argument is not None and known_pad_mask_argument(model) is None
    if own_mask and not bool(mask.all()):
        interface = replace(interface, sees_padding=sees_padding(model, ids, mask, arguments))
    verdict = verify_head(model, ids, arguments, num_tokens=shape[-1], pad_token_id=special.pad_token_id)
    return replace(interface, head=verdict.head, reason=verdict.reason, oddities=verdict.oddities)


def _raised_in(error: BaseException) -> str:
    """The line of a model's own code that raised an error, where there is one below ours and torch's."""
    libraries = (Path(__file__).parent, Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(path) for path in libraries)]
    return f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""


def padded_loss(
    model: nn.Module, interface: RowsInterface, rows: MaskedRows, *, z_loss: float = 0.0, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Summed loss of a padded batch, to be divided by the count of the whole batch, and how many targets were right.

    `z_loss` and `fused` as in `cross_entropy_with_hits`.
    """
    mask = None if rows.is_full else rows.attention_mask
    positions, labels = rounded_targets(rows.positions, rows.labels)
    logits = interface.logits_at(model, positions, rows.input_ids, mask)
    return cross_entropy_with_hits(logits, labels, z_loss=z_loss, fused=fused)
