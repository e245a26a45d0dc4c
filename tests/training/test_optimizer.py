import pytest
import torch
from torch import nn

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.training.optimizer import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return Encoder(EncoderConfig(**shape | changes))


def step(model, optimizers, seed=0):
    ids = torch.randint(1, 32, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(ids).logsumexp(-1).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group(kind, tied):
    model = encoder(tie_word_embeddings=tied)
    optimizers = build_optimizers(model, kind, 1e-3, 0.1)
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {
        name for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "decoder" not in name
    }


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_round_trip_continues_bit_for_bit(kind):
    model = encoder()
    optimizers = build_optimizers(model, kind, 1e-2, 0.1)
    step(model, optimizers, 0)
    other = encoder()
    other.load_state_dict(model.state_dict())
    others = build_optimizers(other, kind, 1e-2, 0.1)
    load_optimizer_tensors(other, others, {k: v.clone() for k, v in optimizer_tensors(model, optimizers).items()})
    for seed in (1, 2):
        step(model, optimizers, seed)
        step(other, others, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_learning_rate_reaches_every_group():
    optimizers = build_optimizers(encoder(), "muon", 1e-2, 0.1)
    set_learning_rate(optimizers, 0.5)
    assert {group["lr"] for o in optimizers for group in o.param_groups} == {0.5}


def test_errors():
    model = encoder()
    optimizers = build_optimizers(model, "muon", 1e-2, 0.1)
    with pytest.raises(ValueError, match="state for 'nobody' does not fit the model"):
        load_optimizer_tensors(model, optimizers, {"nobody//momentum_buffer": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizers(nn.Linear(2, 2).requires_grad_(False), "adamw", 1e-2, 0.1)
