from itertools import chain

import pytest
import torch
from torch import nn

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.training.muon import Muon
from mlm_pytorch.training.optimizer import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_roles,
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
    by_muon = {id(p) for o in optimizers if isinstance(o, Muon) for g in o.param_groups for p in g["params"]}
    assert by_muon == (decayed if kind == "muon" else set())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_round_trip_continues_bit_for_bit(kind):
    model = encoder()
    optimizers = build_optimizers(model, kind, 1e-2, 0.1)
    step(model, optimizers, 0)
    other = encoder()
    other.load_state_dict(model.state_dict())
    others = build_optimizers(other, kind, 1e-2, 0.1)
    load_optimizer_tensors(other, others, {k: v.clone() for k, v in optimizer_tensors(model, optimizers).items()})
    for optimizer in others:
        assert set(optimizer.state) == {p for group in optimizer.param_groups for p in group["params"]}
    for seed in (1, 2):
        step(model, optimizers, seed)
        step(other, others, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_all_of_the_state_is_loaded_onto_the_device_of_its_parameter():
    model = nn.Linear(3, 3)
    optimizers = build_optimizers(model, "adamw", 1e-3, 0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    saved = {key: value.clone() for key, value in optimizer_tensors(model, optimizers).items()}
    elsewhere = nn.Linear(3, 3, device="meta")  # stands for a GPU, where the counts of steps stayed on the host
    others: list[torch.optim.Optimizer] = [torch.optim.AdamW(elsewhere.parameters())]
    load_optimizer_tensors(elsewhere, others, saved)
    devices = {value.device.type for value in optimizer_tensors(elsewhere, others).values()}
    assert devices == {"meta"}


def test_learning_rate_reaches_every_group():
    optimizers = build_optimizers(encoder(), "muon", 1e-2, 0.1)
    set_learning_rate(optimizers, 0.5)
    assert {group["lr"] for o in optimizers for group in o.param_groups} == {0.5}


def test_embeddings_have_a_learning_rate_of_their_own():
    model = encoder(tie_word_embeddings=False)
    optimizers = build_optimizers(model, "muon", 1e-2, 0.1, embedding_lr=2.0)
    for lr in (1e-2, 0.5):
        set_learning_rate(optimizers, lr)
        rates = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
        faster = {name for name, p in model.named_parameters() if rates[id(p)] == 2 * lr}
        assert faster == {"model.embeddings.tok_embeddings.weight", "decoder.weight"}
        assert set(rates.values()) == {lr, 2 * lr}


def names(model, parameters) -> set[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in parameters}


V = 37  # vocabulary


def bert(**changes):
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return BertForMaskedLM(BertConfig(vocab_size=V, max_position_embeddings=32, **shape, **changes))


def modernbert():
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return ModernBertForMaskedLM(ModernBertConfig(vocab_size=V, pad_token_id=0, **shape, **special))


def x_transformer(**changes):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts functions when imported, which torch deprecates
        from x_transformers import Encoder as Layers
        from x_transformers import TransformerWrapper
    layers = Layers(dim=32, depth=1, heads=2, attn_dim_head=16)
    return TransformerWrapper(num_tokens=V, max_seq_len=32, attn_layers=layers, num_memory_tokens=3, **changes)


class Own(nn.Module):
    """As people write them: a convolution, torch's attention, bare parameters."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 32)
        self.positions = nn.Parameter(torch.randn(1, 32, 32))
        self.gain = nn.Parameter(torch.ones(1, 1, 32))
        self.mix = nn.Parameter(torch.randn(32, 32))
        self.conv = nn.Conv1d(32, 32, 3)
        self.layer = nn.TransformerEncoderLayer(32, 2, 48)
        self.norm = nn.LayerNorm((4, 8))
        self.square = nn.Linear(32, V)  # as wide as the vocabulary, and not the last
        self.out = nn.Linear(32, V)


EMBEDDINGS = {
    "bert": (bert, {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
                    "bert.embeddings.token_type_embeddings.weight"}),
    "bert untied": (lambda: bert(tie_word_embeddings=False), {
        "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight", "cls.predictions.decoder.weight"}),
    "modernbert": (modernbert, {"model.embeddings.tok_embeddings.weight"}),
    "x-transformers": (x_transformer, {
        "token_emb.emb.weight", "pos_emb.emb.weight", "memory_tokens", "to_logits.weight"}),
    "x-transformers tied": (lambda: x_transformer(tie_embedding=True),
                            {"token_emb.emb.weight", "pos_emb.emb.weight", "memory_tokens"}),
    "own": (Own, {"embed.weight", "positions", "out.weight"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_roles_in_models_of_every_kind(kind):
    build, embeddings = EMBEDDINGS[kind]
    model = build()
    roles = parameter_roles(model)
    assert names(model, roles.embeddings) == embeddings
    inner = (
        {name for name, p in model.named_parameters() if p.squeeze().ndim == 2}
        - embeddings
        - {"norm.weight", "norm.bias"}
    )
    assert names(model, chain(*roles.matrices.values())) == inner
    assert names(model, roles.filters) == ({"conv.weight"} if kind == "own" else set())
    for optimizer in ("muon", "adamw"):
        optimizers = build_optimizers(model, optimizer, 1e-3, 0.1)
        held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        decayed = [p for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]]
        assert names(model, decayed) == inner | names(model, roles.filters)


def test_matrices_that_are_several_in_one():
    theirs, own = modernbert(), Own()
    for model in (theirs, encoder()):
        found = parameter_roles(model).matrices
        assert len(found) == 4
        for parts, which in {(6, 1): "attn.Wqkv", (1, 2): "attn.Wo", (2, 1): "mlp.Wi"}.items():
            assert names(model, found[parts]) == {
                n for n, _ in model.named_parameters() if n.endswith(f"{which}.weight")
            }
    found = parameter_roles(own).matrices
    heads = own.layer.self_attn.num_heads
    assert names(own, found[3 * heads, 1]) == {"layer.self_attn.in_proj_weight"}
    assert names(own, found[1, heads]) == {"layer.self_attn.out_proj.weight"}


def test_a_projection_that_does_not_fall_into_heads_is_one_matrix():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.Wqkv = 4, nn.Linear(6, 18)

    attention = Attention()
    assert names(attention, parameter_roles(attention).matrices[1, 1]) == {"Wqkv.weight"}


def test_errors():
    model = encoder()
    optimizers = build_optimizers(model, "muon", 1e-2, 0.1)
    with pytest.raises(
        ValueError, match="state for 'weight' does not fit the model; the checkpoint is of another shape"
    ):
        load_optimizer_tensors(nn.Linear(2, 2), [], {"weight//momentum_buffer": torch.ones(3, 2)})
    with pytest.raises(ValueError, match="state for 'nobody' does not fit the model"):
        load_optimizer_tensors(model, optimizers, {"nobody//momentum_buffer": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizers(nn.Linear(2, 2).requires_grad_(False), "adamw", 1e-2, 0.1)
