"""Held-out loss: the same masks whatever the packing, against a slow reference."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import masked_loss
from mlm_pytorch.evaluation.masked import EVALUATION_SEED
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.tokens import IGNORE_INDEX, SpecialTokens

SPECIAL = SpecialTokens(40, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))


class Store:
    special = SPECIAL

    def __init__(self, lengths):
        generator = np.random.default_rng(0)
        self.pieces = [generator.integers(5, 40, n).astype(np.uint16) for n in lengths]

    def __len__(self):
        return len(self.pieces)

    def piece(self, index):
        return self.pieces[index]

    def lengths(self, indices):
        return np.array([len(self.pieces[i]) for i in indices], dtype=np.int64)


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))


def test_equals_the_dense_reference_and_does_not_depend_on_packing():
    store, model = Store([5, 30, 7, 7, 1, 19]), encoder().train()
    results = [masked_loss(model, sequential_packs(store, capacity), SPECIAL) for capacity in (32, 50, 500)]
    assert model.training
    assert len({r.num_targets for r in results}) == 1 and results[0].num_tokens == sum([5, 30, 7, 7, 1, 19]) + 12
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, abs=1e-5) and result.accuracy == results[0].accuracy
    masker = PackMasker(SPECIAL, EVALUATION_SEED)
    loss_sum, count = 0.0, 0
    for pack in sequential_packs(store, 32):
        masked = masker(pack, 150_000)
        labels = torch.full((len(pack.input_ids),), IGNORE_INDEX)
        labels[masked.positions] = masked.labels
        assert (masked.input_ids[masked.positions] == SPECIAL.mask_token_id).all()
        with torch.no_grad():
            logits = model(masked.input_ids, cu_seqlens=masked.cu_seqlens)
        loss_sum += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != IGNORE_INDEX).sum())
    assert results[0].loss == pytest.approx(loss_sum / count, abs=1e-5)
    assert results[0].num_targets == count == sum(math.ceil(0.15 * n) for n in (5, 30, 7, 7, 1, 19))


def test_progress_and_errors():
    store, seen = Store([5, 30]), []
    masked_loss(encoder(), sequential_packs(store, 35), SPECIAL, progress=seen.append)
    assert seen == [7, 39]
    with pytest.raises(ValueError, match="holds no token to predict"):
        masked_loss(encoder(), [], SPECIAL)
