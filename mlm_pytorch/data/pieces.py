"""Documents -> pieces: what becomes of a document that is longer than a piece.

P pieces, in the order of their documents
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlm_pytorch.tokens import SpecialTokens

LONGEST_SEQ_LEN = 1 << 24  # a piece lies in one shard of a store

LongDocuments = Literal["split", "windows", "truncate"]


@dataclass(frozen=True)
class Cutting:
    """How long a piece may be, and what becomes of longer documents (see `cut`)."""

    seq_len: int  # with the tokens that frame a piece
    long_documents: LongDocuments = "split"
    overlap: int = 0  # tokens that neighbouring windows share

    def __post_init__(self):
        if self.seq_len > LONGEST_SEQ_LEN:
            raise ValueError(
                f"seq_len {self.seq_len} is more than the {LONGEST_SEQ_LEN:,} tokens that a shard of a store holds; "
                "choose a smaller one"
            )
        if self.long_documents not in ("split", "windows", "truncate"):
            raise ValueError(f"long_documents {self.long_documents!r} is unknown; choose split, windows or truncate")
        if self.overlap < 0 or (self.overlap and self.long_documents != "windows"):
            raise ValueError(
                f"overlap {self.overlap} is for long_documents 'windows', at least 0; with {self.long_documents!r} "
                "leave it out"
            )
        if self.long_documents == "windows" and not self.overlap:
            raise ValueError("windows need an overlap of at least 1 token; choose one, or long_documents 'split'")

    def max_piece(self, special: SpecialTokens) -> int:
        """Room for content in a piece."""
        framing = len(special.prefix) + len(special.suffix)
        if self.seq_len <= framing:
            raise ValueError(
                f"seq_len {self.seq_len} leaves no room beside the {framing} tokens that frame a piece; choose a "
                "larger one"
            )
        if self.overlap >= self.seq_len - framing:
            raise ValueError(
                f"overlap {self.overlap} is not below the {self.seq_len - framing} tokens that a piece of seq_len "
                f"{self.seq_len} has room for; choose a smaller one"
            )
        return self.seq_len - framing


@dataclass(frozen=True)
class Pieces:
    """How documents that lie end to end are cut."""

    of_document: np.ndarray  # (P,) index of the document
    starts: np.ndarray  # (P,) first token, counted from the beginning of all documents
    lengths: np.ndarray  # (P,) tokens
    cut_documents: int  # longer than a piece
    dropped_tokens: int  # by "truncate"
    repeated_tokens: int  # by "windows": tokens that are stored a second time or more often

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The tokens of all pieces, end to end."""
        if not self.dropped_tokens and not self.repeated_tokens:
            return ids
        ends = np.cumsum(self.lengths)
        return ids[np.repeat(self.starts - ends + self.lengths, self.lengths) + np.arange(ends[-1])]


def cut(lengths: np.ndarray, max_piece: int, long_documents: LongDocuments = "split", overlap: int = 0) -> Pieces:
    """Cut documents of these lengths (at least 1).

    - "split": full pieces, then a rest. Every token is in one piece.
    - "windows": a piece begins `overlap` tokens before the last one ends, until the document's end is reached.
    - "truncate": the first `max_piece` tokens of each.

    >>> cut(np.array([3, 7]), 3).lengths
    array([3, 3, 3, 1])
    >>> cut(np.array([3, 7]), 3, "windows", 1).starts  # tokens 0 to 2; 0 to 2, 2 to 4, 4 to 6 of the second
    array([0, 3, 5, 7])
    >>> cut(np.array([3, 7]), 3, "truncate").lengths
    array([3, 3])
    """
    assert max_piece > overlap >= 0
    if long_documents == "truncate":
        counts = np.ones(len(lengths), dtype=np.int64)
    else:
        counts = 1 + -(-np.maximum(lengths - max_piece, 0) // (max_piece - overlap))
    of_document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(of_document)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the document
    within = number * (max_piece - overlap)
    piece_lengths = np.minimum(lengths[of_document] - within, max_piece)
    stored, given = int(piece_lengths.sum()), int(lengths.sum())
    return Pieces(
        of_document,
        (np.cumsum(lengths) - lengths)[of_document] + within,
        piece_lengths,
        cut_documents=int((lengths > max_piece).sum()),
        dropped_tokens=max(given - stored, 0),
        repeated_tokens=max(stored - given, 0),
    )
