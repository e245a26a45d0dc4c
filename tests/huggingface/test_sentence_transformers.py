"""A run's export goes on in sentence-transformers: it loads there and learns."""

import math

import pytest
import torch

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import CheckedExport

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

PAIRS = [("a cat sat", "the cat was sitting"), ("dogs run", "a dog is running"), ("it rains", "rain falls")]


def test_an_export_trains_for_ten_steps(tmp_path):
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair] * 20, 320)
    encoder = Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))
    sample = tokenizer.encode_batch(PAIRS[0])
    CheckedExport(tokenizer.special, tokenizer.backend, tokenizer.save, sample)(encoder, tmp_path)

    transformer = Transformer(str(tmp_path))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    before = {name: value.clone() for name, value in model.named_parameters()}
    encoded = model.encode(["a cat sat"], convert_to_tensor=True)
    assert encoded.shape == (1, 32) and encoded.isfinite().all()

    loss_of = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        features = [model.preprocess([pair[side] for pair in PAIRS]) for side in (0, 1)]
        loss = loss_of(features, torch.zeros(len(PAIRS)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(["a cat sat"], convert_to_tensor=True)
    torch.testing.assert_close(again, model.encode(["a cat sat"], convert_to_tensor=True))
