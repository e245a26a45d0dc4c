"""Samples with their masks, made as training makes them: packed, framed, selected, corrupted; and checked."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tokenizers
import torch

from mlm_pytorch.data.packing import build_pack
from mlm_pytorch.data.pieces import cut
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.doctor.findings import Finding
from mlm_pytorch.objective.packs import MaskedPack, PackMasker
from mlm_pytorch.tokens import SpecialTokens

SHOWN_TOKENS = 60
_TOLERANCE = 0.1  # of the masking rate: whole words and spans stay below it


class SampledPieces:
    """Pieces in memory, as packing and reading ask for them."""

    def __init__(self, special: SpecialTokens, pieces: Sequence[np.ndarray]):
        self.special, self._pieces = special, pieces

    @property
    def num_tokens(self) -> int:
        """Of all pieces, without framing."""
        return int(self._lengths.sum())

    def __len__(self) -> int:
        return len(self._pieces)

    def piece(self, index: int) -> np.ndarray:
        """Ids of a piece, without framing."""
        return self._pieces[index]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Lengths of pieces, without framing."""
        return self._lengths[indices]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._pieces], np.int64)


def pieces_of(ids: Sequence[np.ndarray], special: SpecialTokens, seq_len: int) -> SampledPieces:
    """Documents cut as a preparation cuts them; empty ones left out.

    Raises ValueError where the tokens that frame a piece leave no room in it.
    """
    room = seq_len - len(special.prefix) - len(special.suffix)
    if room < 1:
        raise ValueError(f"seq_len {seq_len} leaves no room beside the tokens that frame a piece; choose a larger one")
    pieces = []
    for row in ids:
        if len(row):
            lengths = cut(np.array([len(row)]), room).lengths
            pieces += np.split(row, lengths.cumsum()[:-1])
    return SampledPieces(special, pieces)


@dataclass(frozen=True)
class ShownToken:
    """A token of a sample: what it is, what the model is shown (None: itself), whether it is predicted."""

    text: str
    shown: str | None
    selected: bool


@dataclass(frozen=True)
class MaskedSample:
    """A piece as training sees it, as far as it is shown. `share` of its tokens, framing left out, is predicted.

    `with_blanks`: the tokens hold all blanks that the text has, so that none is to be thought between them.
    """

    tokens: tuple[ShownToken, ...]
    length: int
    share: float
    with_blanks: bool = False


def masked_samples(
    pieces: SampledPieces, masker: PackMasker, tokenizer: Tokenizer, mask_prob: int, count: int = 4
) -> tuple[list[MaskedSample], Finding]:
    """Some pieces with their masks, and whether the masks are as they should be on all pieces of these packs.

    mask_prob: in millionths.
    """
    chosen = np.unique(np.linspace(0, len(pieces) - 1, 64).astype(np.int64))
    pack = build_pack(pieces, chosen, np.zeros(len(chosen), np.int64))
    masked = masker(pack, mask_prob)
    samples = []
    name = token_names(tokenizer)
    selected = np.zeros(len(pack.input_ids), bool)
    selected[masked.positions.numpy()] = True
    borders = pack.cu_seqlens.tolist()
    framing = len(pieces.special.prefix) + len(pieces.special.suffix)
    for index in np.unique(np.linspace(0, len(borders) - 2, count).astype(int)).tolist():
        start, end = borders[index], borders[index + 1]
        tokens = tuple(
            ShownToken(name(int(a)), None if a == b else name(int(b)), bool(s))
            for a, b, s in zip(
                pack.input_ids[start:end][:SHOWN_TOKENS].tolist(),
                masked.input_ids[start:end][:SHOWN_TOKENS].tolist(),
                selected[start:end][:SHOWN_TOKENS].tolist(),
                strict=True,
            )
        )
        share = float(selected[start:end].sum() / max(1, end - start - framing))
        samples.append(MaskedSample(tokens, end - start, share, is_byte_level(tokenizer)))
    return samples, check_masks(pack.input_ids, borders, masked, pieces.special, mask_prob)


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens are named by a letter for each byte, blanks among them, as no text reads but that in ASCII."""
    return isinstance(tokenizer.backend.decoder, tokenizers.decoders.ByteLevel)


def token_names(tokenizer: Tokenizer) -> Callable[[int], str]:
    """A function from an id to how its token reads, bytes of byte-level tokens shown as the text that they are."""
    decodes = is_byte_level(tokenizer) or tokenizer.brings_blanks

    def name(index: int) -> str:
        token = tokenizer.backend.id_to_token(index)
        if token is None:
            return f"<{index}>"
        if decodes and index not in tokenizer.special.ids:
            return tokenizer.backend.decode([index], skip_special_tokens=False)
        return token.replace("▁", " ")

    return name


def check_masks(
    input_ids: np.ndarray, borders: Sequence[int], masked: MaskedPack, special: SpecialTokens, mask_prob: int
) -> Finding:
    """Whether special tokens are left alone, other tokens shown, and something predicted in every piece."""
    selected = torch.zeros(len(input_ids), dtype=torch.bool)
    selected[masked.positions] = True
    reserved = special.is_special()[torch.from_numpy(input_ids)]
    trouble = []
    if bool((selected & reserved).any()):
        trouble.append("special tokens are predicted")
    changed = masked.input_ids != torch.from_numpy(input_ids)
    if bool((changed & ~selected).any()):
        trouble.append("tokens are overwritten that are not predicted")
    targets = [int(selected[a:b].sum()) for a, b in itertools.pairwise(borders)]
    maskable = [int((~reserved[a:b]).sum()) for a, b in itertools.pairwise(borders)]
    without = sum(not t and m > 0 for t, m in zip(targets, maskable, strict=True))
    if without:
        trouble.append(f"{without} pieces have nothing to predict")
    share = sum(targets) / max(1, sum(maskable))
    if sum(maskable) > 2000 and share > mask_prob / 1e6 + _TOLERANCE:
        trouble.append("more is masked than asked for")
    seen = f"{share:.1%} of tokens are predicted (asked for: {mask_prob / 1e6:.1%}) in {len(targets)} pieces"
    if not trouble:
        return Finding("masks", "green", "masks are as they should be", seen, value=share)
    return Finding(
        "masks",
        "red",
        "Masks are wrong",
        f"{'; '.join(trouble)}; {seen}",
        "the loss would be measured on the wrong tokens",
        "check the special tokens that the tokenizer names, and the selection",
        share,
    )
