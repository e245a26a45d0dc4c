"""Scaling on paper against what can be counted here."""

import pytest
import torch

from mlm_pytorch.doctor.ranks import (
    activation_bytes,
    check_ranks,
    flops_per_token,
    model_sizes,
    plan_ranks,
)
from mlm_pytorch.encoder import Encoder, EncoderConfig, num_parameters, preset
from mlm_pytorch.training.optimizer import build_optimizers, optimizer_tensors

TINY = EncoderConfig(256, 64, 128, 3, 1, max_position_embeddings=128)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_optimizer_state_is_what_the_optimizers_hold(kind):
    model = Encoder(TINY)
    optimizers = build_optimizers(model, kind, 1e-3, 0.0)
    model(torch.randint(5, 256, (2, 8))).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    held = sum(t.numel() * t.element_size() for t in optimizer_tensors(model, optimizers).values() if t.ndim)
    sizes = model_sizes(TINY, kind)
    assert sizes.optimizer_bytes == held
    assert sizes.parameters == num_parameters(TINY) == sum(p.numel() for p in model.parameters())


def test_activations_of_a_layer_are_about_those_that_autograd_saves():
    """On a CPU attention saves its weights as well (bf16) and copies around them: within a third at short pieces."""

    def saved(layers: int) -> int:
        model = Encoder(EncoderConfig(256, 256, 384, layers, 4, max_position_embeddings=128))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        held: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        ids, borders = torch.randint(5, 256, (4096,)), torch.arange(0, 4097, 16, dtype=torch.int32)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            model.hidden_states(ids, cu_seqlens=borders, max_seqlen=16)
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    shapes = (EncoderConfig(256, 256, 384, layers, 4) for layers in (2, 4))
    small, large = (activation_bytes(shape, 4096, 0.15) for shape in shapes)
    assert (saved(4) - saved(2)) / (large - small) == pytest.approx(1.15, abs=0.35)


def test_flops_are_six_for_each_weight_that_is_multiplied():
    config = preset("base", vocab_size=50_368)
    inside = num_parameters(config) - config.vocab_size * config.hidden_size
    assert flops_per_token(config, 0, 0.0) == pytest.approx(6 * inside, rel=0.02)
    assert flops_per_token(config, 128, 0.15) > flops_per_token(config, 64, 0.15)


def plans(ranks: int, optimizer="adamw"):
    config = preset("base", vocab_size=50_368)
    made = plan_ranks(
        config, ranks, pack_tokens=8192, packs_per_step=ranks, seq_len=1024, optimizer=optimizer, mask_prob=0.3
    )
    return {plan.layout: plan for plan in made}, num_parameters(config)


def test_memory_and_traffic_of_layouts():
    eight, n = plans(8)
    assert eight["DDP"].weights == 6 * n
    assert eight["DDP"].optimizer == 8 * n
    assert eight["FSDP2"].optimizer == n
    assert eight["DDP"].sent_inside == pytest.approx(2 * 7 / 8 * 4 * n)
    assert eight["FSDP2"] == eight["FSDP2"].__class__(**{**vars(eight["hybrid"]), "layout": "FSDP2"})  # one node
    assert all(plan.sent_between == 0 for plan in eight.values())
    many, _ = plans(512)
    assert many["FSDP2"].total < many["hybrid"].total < many["DDP"].total
    assert many["hybrid"].sent_between == pytest.approx(8 * n / 8 * 63 / 64)
    alone, _ = plans(1)
    assert all(plan.sent_inside == plan.sent_between == 0 for plan in alone.values())


def test_sharded_muon_gathers_momentum():
    adamw, muon = plans(64)[0], plans(64, "muon")[0]
    assert muon["DDP"].sent_inside == adamw["DDP"].sent_inside
    assert muon["FSDP2"].sent_inside > adamw["FSDP2"].sent_inside
    assert muon["DDP"].optimizer < adamw["DDP"].optimizer


def test_ranks_without_packs_are_named():
    made = list(plans(8)[0].values())
    assert check_ranks(8, 8, made).level in ("green", "yellow")
    assert check_ranks(8, 4, made).level == "red"
    finding = check_ranks(8, 12, made)
    assert finding.level == "yellow"
    assert finding.remedy == "pass --packs-per-step 16"


def test_no_ranks():
    with pytest.raises(ValueError, match=r"^--ranks 0 is too small; give at least 1$"):
        plans(0)
