"""Held-out loss: the same masks whatever the packing, against a slow reference."""

import math

import pytest
import torch
from list_store import SPECIAL, ListStore
from torch import nn

from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import masked_loss
from mlm_pytorch.evaluation.masked import EVALUATION_SEED
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.tokens import IGNORE_INDEX


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))


def test_equals_the_dense_reference_and_does_not_depend_on_packing():
    store, model = ListStore([5, 30, 7, 7, 1, 19]), encoder().train()
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
    store, seen = ListStore([5, 30]), []
    masked_loss(encoder(), sequential_packs(store, 35), SPECIAL, progress=seen.append)
    assert seen == [7, 39]
    with pytest.raises(ValueError, match="holds no token to predict"):
        masked_loss(encoder(), [], SPECIAL)
