"""A masking collator for Hugging Face's Trainer, and for any `DataLoader`."""

# B batch, L length

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from mlm_pytorch import masking

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

# ---------------------------------------------------------------------------------------------------------------------
# Collating and masking
# ---------------------------------------------------------------------------------------------------------------------

# Fields that would be wrong after masking, or that no model takes.
_DROPPED = ("labels", "offset_mapping")
# Shared counters of how often a loader worker of each number has started; see `MLMCollator._generator`.
_WORKER_SLOTS = 1024


@dataclass(eq=False)
class MLMCollator:
    """A drop-in for transformers' `DataCollatorForLanguageModeling`, with the selections of `mlm_pytorch.masking`.

    Called with examples, it pads them to one length, masks them, and returns a `BatchEncoding` whose `input_ids` (B, L)
    is what the model sees and whose `labels` (B, L) holds the originals at selected positions, -100 elsewhere. Examples
    are dicts (or `BatchEncoding`s) or bare id sequences; values are lists, numpy arrays or tensors, and stay unchanged.

    Of the n tokens that may be masked in an example, exactly ceil(mlm_probability * n) are selected (whole units within
    that count for words, spans and n-grams). Never selected: special tokens, padding, and positions that
    `special_tokens_mask` or a zero in `attention_mask` marks. Special tokens are never drawn as replacements either.

    Arguments as transformers has them, in its order:
      tokenizer: of transformers; with a mask token.
      mlm: only True.
      whole_word_mask: the same as `selection="words"`, and with every kind of replacement.
      mlm_probability: share selected. Of these become the mask token mask_replace_prob, a random token
        random_replace_prob, and the rest stay.
      pad_to_multiple_of: round the padded length up.
      return_tensors: "pt" or "np"; both give the same masks.
      seed: draw masks from a stream of its own, else from torch's global generator. The stream also depends on the
        process's rank (of `torch.distributed`, else `RANK`, as torchrun sets it), and in loader workers on the worker's
        number and on how often it was started, so that ranks and epochs differ and runs do not. It begins anew when a
        run is resumed.
    and ours, by name:
      selection: "tokens", "words", "spans", "ngrams", or a function with the arguments of `masking.select_tokens`.
      padding: True or "longest"; "max_length" (up to `max_length`); False for examples of one length.

    A field is padded with zeros (token_type_ids: with their padding id) along its first dimension if that equals the
    example's length in every example, and stacked otherwise; what is not a number is passed on as a list.

    >>> collator = MLMCollator(tokenizer, mlm_probability=0.3, seed=1)                            # doctest: +SKIP
    >>> Trainer(model, args, train_dataset=dataset, data_collator=collator).train()              # doctest: +SKIP

    Raises ValueError for a tokenizer without a mask token (or without a padding token where one is needed),
    probabilities outside [0, 1] or together above 1, an unknown selection, and examples that do not fit together.
    """

    tokenizer: PreTrainedTokenizerBase
    mlm: bool = True
    whole_word_mask: bool = False
    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    seed: int | None = None
    _: KW_ONLY
    selection: str | Callable[..., Tensor] = "tokens"
    padding: bool | str = True
    max_length: int | None = None

    _select: Callable[..., Tensor] = field(init=False, repr=False)
    _is_special: Tensor = field(init=False, repr=False)
    _drawable_ids: Tensor = field(init=False, repr=False)
    _stream: torch.Generator | None = field(init=False, repr=False, default=None)
    _stream_of: int | None = field(init=False, repr=False, default=None)
    _starts: Tensor | None = field(init=False, repr=False, default=None)
    _rank: int | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._check()
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        # One entry more on either side, for ids that the tokenizer does not know: these are not special.
        self._is_special = torch.zeros(max(special) + 3, dtype=torch.bool)
        self._is_special[torch.tensor(sorted(special)) + 1] = True
        self._drawable_ids = torch.tensor(sorted(set(self.tokenizer.get_vocab().values()) - special))
        self._select = self._find_selection()
        if self.seed is not None:  # in shared memory: workers count their starts where the next epoch's will see it
            self._starts = torch.zeros(_WORKER_SLOTS, dtype=torch.int64).share_memory_()

    def __call__(self, examples: Sequence[Any], return_tensors: str | None = None) -> BatchEncoding:
        """Pad, mask and label a list of examples; see the class."""
        from transformers import BatchEncoding

        kind = _known_tensors(return_tensors or self.return_tensors)
        batch = self._pad(examples)
        input_ids = batch["input_ids"]
        places = (input_ids + 1).clamp_(0, len(self._is_special) - 1).flatten()
        maskable = ~self._is_special.index_select(0, places).view_as(input_ids)
        if "special_tokens_mask" in batch:
            maskable &= batch.pop("special_tokens_mask") == 0
        attention_mask = batch.get("attention_mask")
        if attention_mask is not None and attention_mask.shape == input_ids.shape:
            maskable &= attention_mask != 0
        corrupted = self._mask(input_ids, maskable)
        batch |= {"input_ids": corrupted.input_ids, "labels": corrupted.labels}
        if kind == "np":
            batch = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in batch.items()}
        return BatchEncoding(batch)

    def __getstate__(self) -> dict[str, Any]:
        """With the stream as an array and the rank: a loader worker that is spawned cannot read a torch generator, and
        is in no process group."""
        stream = None if self._stream is None else self._stream.get_state().numpy()
        return self.__dict__ | {"_stream": stream, "_rank": self._own_rank()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["_stream"] is not None:
            self._stream = torch.Generator()
            self._stream.set_state(torch.from_numpy(state["_stream"]))

    def _mask(self, input_ids: Tensor, maskable: Tensor) -> masking.Corrupted:
        scores = masking.draw_scores(input_ids, self._generator())
        selected = self._select(scores, input_ids, maskable, masking.millionths(self.mlm_probability))
        return masking.corrupt(
            input_ids,
            selected,
            scores,
            mask_token_id=cast(int, self.tokenizer.mask_token_id),
            replace_prob=min(1.0, self.mask_replace_prob + self.random_replace_prob),
            # A vocabulary of special tokens only has nothing to draw: the mask token takes that share.
            random_token_prob=self.random_replace_prob if self._drawable_ids.numel() else 0.0,
            drawable_ids=self._drawable_ids,
        )

    def _generator(self) -> torch.Generator | None:
        """The stream of (seed, rank, worker, how often a worker of that number was started); None without a seed.

        A loader forgets its workers after each epoch, and they begin with what the main process holds. A stream of
        (seed, worker) alone would thus repeat the same masks every epoch.
        """
        if self.seed is None:
            return None
        worker = torch.utils.data.get_worker_info()
        owner = None if worker is None else worker.seed
        if self._stream is None or owner != self._stream_of:
            key = [self.seed % 2**64, self._own_rank(), 0, 0]
            if worker is not None:
                assert self._starts is not None
                slot = worker.id % _WORKER_SLOTS
                key[2:] = [worker.id + 1, int(self._starts[slot])]
                self._starts[slot] += 1
            self._stream = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            self._stream_of = owner
        return self._stream

    def _own_rank(self) -> int:
        """Of this process, or in a loader worker of the one that started it. Not every launcher sets RANK: Lightning's
        does not."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
        if self._rank is not None and torch.utils.data.get_worker_info() is not None:
            return self._rank
        return int(os.environ.get("RANK") or 0)

    def _pad(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Examples -> fields: tensors (B, L, ...) where they run along the tokens, (B, ...) or lists where not."""
        if not len(examples):
            raise ValueError("0 examples make no batch; pass at least one")
        rows = [row if isinstance(row, Mapping) else {"input_ids": row} for row in examples]
        for index, row in enumerate(rows):
            if row.keys() != rows[0].keys():
                raise ValueError(
                    f"example {index} has the fields {sorted(row)} and example 0 has {sorted(rows[0])}; "
                    "give every example the same fields"
                )
        if "input_ids" not in rows[0]:
            raise ValueError(f"the examples have the fields {sorted(rows[0])} but no input_ids; tokenize them first")

        columns = {name: [_array(row[name]) for row in rows] for name in rows[0] if name not in _DROPPED}
        for index, ids in enumerate(columns["input_ids"]):
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise ValueError(
                    f"input_ids of example {index} have shape {ids.shape} and type {ids.dtype}; "
                    "pass one dimension of integers per example"
                )
        lengths = np.array([len(ids) for ids in columns["input_ids"]])
        length = self._padded_length(lengths.tolist())
        batch = {name: self._column(name, values, lengths.tolist(), length) for name, values in columns.items()}
        if "attention_mask" not in batch and "attention_mask" in self.tokenizer.model_input_names:
            counted = np.arange(1, length + 1)  # from the end where padding does not go
            counted = counted[::-1] if self.tokenizer.padding_side == "left" else counted
            batch["attention_mask"] = torch.from_numpy((counted <= lengths[:, None]).astype(np.int64))
        return batch

    def _padded_length(self, lengths: list[int]) -> int:
        longest = max(lengths)
        if self.padding in (False, "do_not_pad"):
            if min(lengths) < longest:
                raise ValueError(
                    f"examples of {min(lengths)} to {longest} tokens make no batch without padding; "
                    "set padding=True or cut them to one length"
                )
            return longest
        if self.padding == "max_length":
            assert self.max_length is not None
            if longest > self.max_length:
                raise ValueError(
                    f"an example of {longest} tokens exceeds max_length {self.max_length}; truncate it when tokenizing"
                )
            longest = self.max_length
        multiple = self.pad_to_multiple_of or 1
        longest = -(-longest // multiple) * multiple
        if longest > min(lengths) and self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"examples of {min(lengths)} to {max(lengths)} tokens need padding to {longest}, but the tokenizer has "
                "no padding token; set tokenizer.pad_token, or give the examples one length"
            )
        return longest

    def _column(self, name: str, values: list[np.ndarray], lengths: list[int], length: int) -> Tensor | list[Any]:
        """One field of all examples, padded or stacked."""
        kinds = {value.dtype.kind for value in values}
        if not kinds <= set("biuf"):
            return [value.tolist() for value in values]
        per_token = all(value.ndim and len(value) == n for value, n in zip(values, lengths, strict=True))
        inner = {value.shape[1:] if per_token else value.shape for value in values}
        if len(inner) > 1:
            raise ValueError(
                f"the field {name} has shapes {sorted({value.shape for value in values})} for examples of "
                f"{sorted(set(lengths))} tokens; drop it, or give it one value per token or one shape"
            )
        dtype = np.float32 if "f" in kinds else np.bool_ if kinds == {"b"} else np.int64
        if not per_token:
            return torch.from_numpy(np.stack(values).astype(dtype))
        fill = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "token_type_ids": self.tokenizer.pad_token_type_id,
            "special_tokens_mask": 1,
        }.get(name, 0)
        padded = np.full((len(values), length, *inner.pop()), fill, dtype)
        left = self.tokenizer.padding_side == "left"
        for row, value, n in zip(padded, values, lengths, strict=True):
            row[length - n if left else 0 : length if left else n] = value
        return torch.from_numpy(padded)

    def _find_selection(self) -> Callable[..., Tensor]:
        if callable(self.selection):
            return self.selection
        name = "words" if self.whole_word_mask else self.selection
        if name not in masking.SELECTIONS:
            known = ", ".join(masking.SELECTIONS)
            raise ValueError(f"selection {name!r} is unknown; pass one of {known}, or a function")
        select = masking.SELECTIONS[name]
        # The word table is derived here, once, and not in every loader worker.
        return partial(select, words=masking.derive_words(self.tokenizer)) if select in masking.OF_WORDS else select

    def _check(self) -> None:
        if not self.mlm:
            raise ValueError("mlm=False asks for causal language modelling; use transformers' own collator for that")
        if self.tokenizer.mask_token_id is None:
            raise ValueError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no mask token; add one "
                "(tokenizer.add_special_tokens({'mask_token': '[MASK]'})) and resize the model's embeddings"
            )
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob"):
            value = getattr(self, name)
            if value is None or not 0 <= value <= 1:
                raise ValueError(f"{name} {value} is outside [0, 1]; pass a share such as 0.15")
        if self.mask_replace_prob + self.random_replace_prob > 1 + 1e-9:  # 1e-9: 0.9 + 0.1 may round up
            raise ValueError(
                f"mask_replace_prob {self.mask_replace_prob} and random_replace_prob {self.random_replace_prob} "
                "together exceed 1; lower one of them"
            )
        if self.whole_word_mask and self.selection not in ("tokens", "words"):
            raise ValueError(f"whole_word_mask=True contradicts selection={self.selection!r}; pass one of them")
        if self.padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding {self.padding!r} is unknown; pass 'longest', 'max_length' or 'do_not_pad'")
        if self.padding == "max_length" and self.max_length is None:
            raise ValueError("padding 'max_length' needs max_length; pass the length to pad to")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of {self.pad_to_multiple_of} is not positive; pass a number such as 8")
        _known_tensors(self.return_tensors)


def _known_tensors(kind: str) -> str:
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors {kind!r} is unknown; pass 'pt' or 'np'")
    return kind


def _array(value: Any) -> np.ndarray:
    if type(value) is list and value and type(value[0]) is int:  # what most examples are: a tenth of numpy's time
        try:
            return np.frombuffer(array("q", value), np.int64)
        except (TypeError, OverflowError):  # not all are integers, or not of 64 bits
            return np.asarray(value)
    values = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return values if values.size else values.astype(np.int64)  # numpy takes an empty list for floats
