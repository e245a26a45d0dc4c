"""Token vectors from neighbours: counts against a slow reference, the factorization against torch's own."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data import cooccurrence
from mlm_pytorch.data.cooccurrence import count_neighbours, token_vectors
from mlm_pytorch.tokens import SpecialTokens


class InMemory:
    """Pieces in a list."""

    def __init__(self, pieces, num_tokens=12):
        self.all = [np.array(piece, dtype=np.uint16) for piece in pieces]
        self.special = SpecialTokens(num_tokens, mask_token_id=1, pad_token_id=0, ids=(0, 1))
        self.asked = []

    @property
    def num_tokens(self):
        return sum(map(len, self.all))

    def __len__(self):
        return len(self.all)

    def piece(self, index):
        self.asked.append(index)
        return self.all[index]

    def lengths(self, indices):
        return np.array([len(self.all[i]) for i in indices])


def slow_counts(pieces, num_tokens, num_contexts, window):
    frequency = Counter(token for piece in pieces for token in piece)
    contexts = sorted(frequency, key=lambda token: (-frequency[token], token))[:num_contexts]
    counts = np.zeros((num_tokens, 2 * window, len(contexts)))
    for piece in pieces:
        for at, token in enumerate(piece):
            for place in range(2 * window):
                there = at + (place // 2 + 1) * (-1 if place % 2 else 1)
                if 0 <= there < len(piece) and piece[there] in contexts:
                    counts[token, place, contexts.index(piece[there])] += 1
    return counts.reshape(num_tokens, -1)


pieces_of_ids = st.lists(st.lists(st.integers(2, 11), min_size=1, max_size=9), min_size=1, max_size=8)


@given(pieces_of_ids, st.integers(1, 12), st.integers(1, 4), st.sampled_from([1, 7, 1 << 20]))
def test_counts_equal_a_slow_reference_however_many_tokens_at_once(pieces, num_contexts, window, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_AT_ONCE", at_once)
        counts = count_neighbours(InMemory(pieces), num_contexts=num_contexts, window=window)
    np.testing.assert_allclose(counts, slow_counts(pieces, 12, num_contexts, window), rtol=1e-6)


def test_a_large_store_is_sampled_evenly():
    store = InMemory([[2, 3]] * 50_000)
    counts = count_neighbours(store, max_tokens=20_000)
    assert 9_000 <= len(set(store.asked)) <= 10_000
    assert min(store.asked) == 0 and max(store.asked) > 49_000
    assert counts.sum() == 2 * len(set(store.asked))


def test_many_tokens_have_fewer_contexts(monkeypatch):
    pieces = [[2 + i for i in range(5)], [7, 8]]
    monkeypatch.setattr(cooccurrence, "MOST_CELLS", 12 * 4 * 3)
    monkeypatch.setattr(cooccurrence, "LEAST_CONTEXTS", 1)
    assert count_neighbours(InMemory(pieces)).shape == (12, 4 * 3)
    monkeypatch.setattr(cooccurrence, "LEAST_CONTEXTS", 4)  # fewer say nothing, and four of them are small
    assert count_neighbours(InMemory(pieces)).shape == (12, 4 * 4)


def language(seed: int) -> list[list[int]]:
    """Five kinds of tokens, eight of each; a kind says which kinds may follow, not which tokens."""
    rng = np.random.default_rng(seed)
    follows = {0: [1, 2], 1: [3], 2: [4], 3: [0], 4: [0, 1]}
    kind, tokens = 0, []
    for _ in range(20_000):
        tokens.append(int(2 + 8 * kind + rng.integers(8)))
        kind = int(rng.choice(follows[kind]))
    return [tokens[i : i + 50] for i in range(0, len(tokens), 50)]


@pytest.mark.parametrize("width", [4, 16])
def test_tokens_that_are_used_alike_lie_together(width):
    torch.manual_seed(0)
    vectors = token_vectors(count_neighbours(InMemory(language(0), num_tokens=42)), width)[2:]
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    kinds = torch.arange(40) // 8
    alike = (kinds[:, None] == kinds) & ~torch.eye(40, dtype=torch.bool)
    cosines = unit @ unit.T
    nearest = cosines.masked_fill(torch.eye(40, dtype=torch.bool), -2).argmax(1)
    assert (kinds[nearest] == kinds).all()
    assert cosines[alike].mean() > cosines[kinds[:, None] != kinds].mean() + 0.5


@pytest.mark.parametrize(("rows", "contexts", "width"), [(60, 20, 8), (20, 60, 8), (30, 30, 12)])
def test_the_factorization_is_the_best_of_its_rank(rows, contexts, width):
    torch.manual_seed(0)
    counts = torch.rand(rows, contexts).pow(4) * 50
    left, values, _ = torch.linalg.svd((counts / counts.sum(1, keepdim=True)).sqrt())
    exact = left[:, :width] * values[:width].sqrt()
    vectors = token_vectors(counts, width)
    gram, gram_exact = vectors @ vectors.T, exact @ exact.T  # the same up to a turn and a scale
    torch.testing.assert_close(gram / gram.norm(), gram_exact / gram_exact.norm(), atol=2e-3, rtol=0)


def test_no_dimension_stands_out_and_unseen_tokens_get_random_vectors():
    torch.manual_seed(0)
    counts = count_neighbours(InMemory(language(1), num_tokens=60))  # 42 to 59 never occur
    vectors = token_vectors(counts, 32)
    assert vectors.shape == (60, 32) and vectors.isfinite().all()
    of_dimension = vectors[2:42].square().sum(0)
    values = torch.linalg.svdvals(vectors[2:42])
    assert of_dimension.max() < 0.5 * values.square().max()  # the largest, before it was turned, had all of that
    seen, unseen = vectors[2:42].norm(dim=1).mean(), vectors[42:].norm(dim=1).mean()
    assert 0.5 < seen / unseen < 2
    assert not torch.equal(vectors[42], vectors[43])
    torch.manual_seed(0)
    again = token_vectors(counts, 32)
    assert torch.equal(vectors, again)


@pytest.mark.parametrize("pieces", [[[5]], [[5], [6]], [[5, 5, 5]]], ids=["one token", "two alone", "one kind"])
def test_a_corpus_that_tells_nothing_gives_random_vectors(pieces):
    vectors = token_vectors(count_neighbours(InMemory(pieces)), 8)
    assert vectors.shape == (12, 8) and vectors.isfinite().all()
    assert (vectors.norm(dim=1) > 0).all()
