"""Token vectors from a corpus alone, in seconds: what stands beside each token.

Tokens that are used alike have like neighbours, so the rows of a table of neighbours, reduced to few dimensions, lie
near each other (Lebret & Collobert 2014, EACL, "Word embeddings through Hellinger PCA"). An encoder whose embeddings
begin there need not find it out by gradient descent (docs/results/recipes.md).

Shapes: V tokens, C contexts, N columns (C for each place beside a token), W width of a vector.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mlm_pytorch.data.batches import sample_of_pieces
from mlm_pytorch.data.packing import Pieces

WINDOW = 2  # places on each side; 1 and 4 are worse for encoders, 3 is no better
MOST_CONTEXTS = 1024  # at each place: the tokens that occur most often
MOST_CELLS = 1 << 26  # of the table, 256 MiB; with many tokens fewer of them are contexts
LEAST_CONTEXTS = 32
MOST_TOKENS, MOST_PIECES = 1 << 24, 1 << 18  # of the corpus that are looked at
_AT_ONCE = 1 << 20  # tokens whose pairs are in memory
_OVERSAMPLED, _ITERATIONS = 16, 3  # of the randomized decomposition


def count_neighbours(
    store: Pieces, *, num_contexts: int | None = None, window: int = WINDOW, max_tokens: int = MOST_TOKENS
) -> np.ndarray:
    """How often each token has each of the commonest ones at each place beside it: (V, N) float32, N = 2 `window` C.

    Places are ordered by distance, the right one before the left. Pieces are apart: the last token of one has nothing
    to its right.

    Args:
        store: pieces; of a large one as many are counted as have about `max_tokens`, evenly over it.
        num_contexts: C; by default what fits `MOST_CELLS`.
        window: the farthest place on either side.
        max_tokens: see there.
    """
    per_piece = max(1.0, store.num_tokens / max(1, len(store)))
    chosen = sample_of_pieces(store, max(1, min(MOST_PIECES, int(max_tokens / per_piece))))
    num_tokens = store.special.num_tokens
    frequency = np.zeros(num_tokens, dtype=np.int64)
    for tokens, _ in _some_at_once(store, chosen):
        frequency += np.bincount(tokens, minlength=num_tokens)
    room = min(MOST_CONTEXTS, max(LEAST_CONTEXTS, MOST_CELLS // (2 * window * num_tokens)))
    contexts = np.argsort(-frequency, kind="stable")[: num_contexts or room]
    contexts = contexts[frequency[contexts] > 0]
    column = np.full(num_tokens, -1)
    column[contexts] = np.arange(len(contexts))
    width = 2 * window * len(contexts)
    counts = np.zeros(num_tokens * width, dtype=np.float32)
    for tokens, of_piece in _some_at_once(store, chosen):
        for place in range(2 * window):
            distance = place // 2 + 1
            together = of_piece[:-distance] == of_piece[distance:]
            token, neighbour = tokens[:-distance][together], tokens[distance:][together]
            if place % 2:  # to the left
                token, neighbour = neighbour, token
            context = column[neighbour]
            np.add.at(counts, (token * width + place * len(contexts) + context)[context >= 0], np.float32(1))
    return counts.reshape(num_tokens, width)


def _some_at_once(store: Pieces, chosen: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens of some pieces, end to end, and the number of the piece that each belongs to."""
    pieces, waiting = [], 0
    for number, index in enumerate(chosen, start=1):
        pieces.append(store.piece(index))
        waiting += len(pieces[-1])
        if waiting >= _AT_ONCE or number == len(chosen):
            yield np.concatenate(pieces).astype(np.int64), np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])
            pieces, waiting = [], 0


def token_vectors(counts: np.ndarray | Tensor, width: int) -> Tensor:
    """Vectors (V, W), of mean square 1, from counts of neighbours (V, N); tokens without any get random ones.

    The square roots of each token's shares of neighbours, whose distance is Hellinger's, and of those the best
    approximation by W dimensions, with the square root of the singular values. The dimensions are turned at random, so
    that none is larger than others, which optimizers take each by itself. Where the table has fewer dimensions than W,
    the rest is random. Takes random numbers from torch's default generator.

    Example:
        >>> counts = np.zeros((5, 4), dtype=np.float32)
        >>> counts[:2, :2] = [[8, 1], [7, 1]]       # two tokens in the same places, two in others, one nowhere
        >>> counts[2:4, 2:] = [[1, 9], [1, 8]]
        >>> vectors = token_vectors(counts, 2)
        >>> vectors.shape, bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        (torch.Size([5, 2]), True)
    """
    table = torch.as_tensor(counts)
    of_token = table.sum(1, keepdim=True)
    seen = of_token.squeeze(1) > 0
    left, values = _largest_singular((table / of_token.clamp_min(1)).sqrt_(), width)
    vectors = left * values.sqrt()
    if bool(seen.any()):
        vectors /= vectors[seen].square().mean().sqrt()
    rest = torch.randn(len(vectors), width - vectors.shape[1])
    turn, _ = torch.linalg.qr(torch.randn(width, width))
    vectors = torch.cat([vectors, rest], dim=1) @ turn
    vectors[~seen] = torch.randn(int((~seen).sum()), width)
    return vectors


def _largest_singular(matrix: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Left vectors (V, k) and the k <= `number` largest singular values (k,), by a randomized method: a few products
    with the matrix, which is never decomposed itself (Halko et al. 2011, SIAM Review 53, algorithm 4.4).
    """
    kept = min(number, *matrix.shape)
    basis = torch.randn(matrix.shape[1], min(kept + _OVERSAMPLED, *matrix.shape))
    basis, _ = torch.linalg.qr(matrix @ basis)
    for _ in range(_ITERATIONS):
        basis, _ = torch.linalg.qr(matrix.T @ basis)
        basis, _ = torch.linalg.qr(matrix @ basis)
    left, values, _ = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :kept], values[:kept]
