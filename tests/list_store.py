"""The slow, obvious store for tests: a list of random pieces."""

from functools import cached_property

import numpy as np

from mlm_pytorch.tokens import SpecialTokens

SPECIAL = SpecialTokens(40, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))


class ListStore:
    """Pieces of the given lengths, without special tokens among them."""

    def __init__(self, lengths: list[int], special: SpecialTokens = SPECIAL):
        generator = np.random.default_rng(0)
        self.special = special
        self.pieces = [generator.integers(5, special.num_tokens, n).astype(np.uint16) for n in lengths]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.pieces))

    def __len__(self) -> int:
        return len(self.pieces)

    def piece(self, index: int) -> np.ndarray:
        return self.pieces[index]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        return self._lengths[indices]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)
