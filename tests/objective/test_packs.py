"""Masking and loss of a pack: per piece, whatever the packing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore

from mlm_pytorch.data.packing import build_pack
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_logits, pack_loss
from mlm_pytorch.tokens import WordTable


def masks_by_piece(pack, masked):
    """What was selected in each piece, as positions within it, and what the model sees there."""
    borders, found = pack.cu_seqlens, {}
    for start, end, piece in zip(borders[:-1], borders[1:], pack.pieces, strict=True):
        here = (masked.positions >= start) & (masked.positions < end)
        where = masked.positions[here]
        found[int(piece)] = ((where - start).tolist(), masked.input_ids[where].tolist(), masked.labels[here].tolist())
    return found


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(0, 5),
    st.integers(10_000, 1_000_000),
    st.randoms(),
)
def test_a_piece_has_the_same_mask_alone_and_in_any_pack(lengths, visit, rate, random):
    store, masker = ListStore(lengths), PackMasker(SPECIAL, seed=9, replace_prob=0.9, random_token_prob=0.3)
    indices = list(range(len(lengths)))
    random.shuffle(indices)
    visits = np.full(len(lengths), visit)
    together = build_pack(store, np.array(indices), visits, sum(lengths) + 2 * len(lengths) + 5)
    found = masks_by_piece(together, masker(together, rate))
    assert found.pop(-1) == ([], [], []), "padding is never selected"
    for index, length in enumerate(lengths):
        alone = build_pack(store, np.array([index]), visits[:1], length + 2)
        assert masks_by_piece(alone, masker(alone, rate))[index] == found[index]
        positions, seen, labels = found[index]
        assert len(positions) == math.ceil(rate * length / 1_000_000)
        assert all(1 <= p <= length for p in positions), "the framing is never selected"
        assert labels == [int(store.piece(index)[p - 1]) for p in positions]
        assert not set(seen) & (set(SPECIAL.ids) - {SPECIAL.mask_token_id})


def test_visits_and_seeds_draw_anew():
    store = ListStore([30] * 3)
    indices = np.arange(3)
    found = []
    for seed, visit in ((0, 0), (0, 1), (1, 0), (0, 0)):
        pack = build_pack(store, indices, np.full(3, visit), 96)
        found.append(masks_by_piece(pack, PackMasker(SPECIAL, seed)(pack, 300_000)))
        assert set(found[-1][0][1]) == {SPECIAL.mask_token_id}, "unless more is said, all that is selected is masked"
    assert found[0] == found[3] and found[0] != found[1] and found[0] != found[2]


def test_sparse_and_dense_logits_are_the_same():
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))
    pack = build_pack(ListStore([9, 20, 3]), np.arange(3), np.zeros(3, np.int64), 40)
    masked = PackMasker(SPECIAL, 0)(pack, 300_000)
    sparse, dense = pack_logits(model, find_head(model), masked), pack_logits(model, None, masked)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    loss_sum, num_correct = pack_loss(model, find_head(model), masked)
    expected = torch.nn.functional.cross_entropy(dense, masked.labels, reduction="sum")
    assert float(loss_sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert int(num_correct) == int((dense.argmax(-1) == masked.labels).sum())


@pytest.mark.parametrize("rate", [0, 30_000, 300_000, 1_000_000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_rows_that_fill_up_a_count_change_neither_loss_nor_gradients(rate, z_loss):
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))
    pack = build_pack(ListStore([9, 20, 3]), np.arange(3), np.zeros(3, np.int64), 40)
    masked = PackMasker(SPECIAL, 0)(pack, rate)
    logits = pack_logits(model, find_head(model), masked)
    normaliser = logits.logsumexp(-1)
    expected = torch.nn.functional.cross_entropy(logits, masked.labels, reduction="sum")
    expected = expected + z_loss * normaliser.square().sum()
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    seen = []
    hook = model.decoder.register_forward_hook(lambda _, __, output: seen.append(len(output)))
    loss_sum, num_correct = pack_loss(model, find_head(model), masked, z_loss=z_loss)
    hook.remove()
    assert seen == [-(-masked.num_targets // 16) * 16]
    torch.testing.assert_close(loss_sum, expected, atol=1e-4, rtol=1e-5)
    assert int(num_correct) == int((logits.argmax(-1) == masked.labels).sum())
    got = torch.autograd.grad(loss_sum, parameters, allow_unused=True, materialize_grads=True)
    for ours, plain in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_a_pack_is_moved_as_a_whole():
    pack = build_pack(ListStore([9, 20, 3]), np.arange(3), np.zeros(3, np.int64), 40)
    masked = PackMasker(SPECIAL, 0)(pack, 300_000)
    assert masked.to(torch.device("cpu")) is masked
    assert masked.cu_seqlens.dtype == torch.int32, "what kernels for packs take"
    moved = masked.to(torch.device("meta"))
    for name in ("input_ids", "cu_seqlens", "positions", "labels"):
        here, there = getattr(masked, name), getattr(moved, name)
        assert there.is_meta and (there.shape, there.dtype) == (here.shape, here.dtype)
    assert (moved.max_seqlen, moved.num_tokens) == (masked.max_seqlen, masked.num_tokens)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moving_to_cuda_keeps_everything():
    pack = build_pack(ListStore([9, 20, 3]), np.arange(3), np.zeros(3, np.int64), 40)
    masked = PackMasker(SPECIAL, 0)(pack, 300_000)
    moved = masked.to(torch.device("cuda"))
    for name in ("input_ids", "cu_seqlens", "positions", "labels"):
        assert torch.equal(getattr(moved, name).cpu(), getattr(masked, name))


def test_errors():
    pack = build_pack(ListStore([9]), np.arange(1), np.zeros(1, np.int64), 11)
    masker = PackMasker(SPECIAL, 0, replace_prob=0.2, random_token_prob=0.5)
    with pytest.raises(ValueError, match="random_token_prob 0.5 exceeds replace_prob 0.2"):
        masker(pack, 150_000)


def words_of_two(vocabulary: int) -> WordTable:
    """Odd ids continue the word of the even one before them."""
    return WordTable.from_starts([i % 2 == 0 for i in range(vocabulary)])


@pytest.mark.parametrize("selection", ["words", "spans", "ngrams", "balanced"])
def test_every_selection_is_per_piece_and_within_its_share(selection):
    lengths = [1, 7, 30, 30, 2]
    words = words_of_two(SPECIAL.num_tokens) if selection in ("words", "ngrams") else None
    store, masker = ListStore(lengths), PackMasker(SPECIAL, 3, selection=selection, words=words)
    together = build_pack(store, np.arange(5), np.arange(5), 96)
    found = masks_by_piece(together, masker(together, 300_000))
    assert found.pop(-1) == ([], [], [])
    for index, length in enumerate(lengths):
        alone = build_pack(store, np.array([index]), np.array([index]), length + 2)
        assert masks_by_piece(alone, masker(alone, 300_000))[index] == found[index]
        chosen, share = found[index][0], math.ceil(0.3 * length)
        assert len(chosen) >= 1, "no piece goes without a target"
        if selection == "balanced":
            assert len(chosen) == share
        else:
            assert len(chosen) <= share or selection in ("words", "ngrams"), "at most one unit exceeds the share"
        if selection == "words":
            ids = store.piece(index)
            for position in chosen:  # a word is selected whole
                after = position  # framing shifts positions by one
                assert after >= length or ids[after] % 2 == 0 or after + 1 in chosen


def test_balanced_visits_take_turns():
    store, masker = ListStore([20]), PackMasker(SPECIAL, 3, selection="balanced")
    counts = np.zeros(21, dtype=int)
    for visit in range(20):
        pack = build_pack(store, np.array([0]), np.array([visit]), 22)
        counts[masks_by_piece(pack, masker(pack, 250_000))[0][0]] += 1
    assert counts[1:].tolist() == [5] * 20


def test_selections_that_cannot_be():
    with pytest.raises(ValueError, match=r"selection 'letters' is unknown; choose one of tokens, words, spans, ngrams"):
        PackMasker(SPECIAL, 0, selection="letters")
    with pytest.raises(ValueError, match="selection 'words' needs to know where words begin"):
        PackMasker(SPECIAL, 0, selection="words")
