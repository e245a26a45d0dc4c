import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_device import DEVICE, HALF

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.encoder import encoder as encoder_module
from mlm_pytorch.encoder.attention import rotary_tables
from mlm_pytorch.encoder.blocks import BlockPlan, Blocks, attend_blocks
from mlm_pytorch.encoder.encoder import positions_within
from mlm_pytorch.encoder.tiles import TILE, TilePlan, Tiles, attend_tiles


def both_ways(lengths, window, dtype=torch.float32, heads=2, head_dim=32):
    """Outputs and gradients of the kernels, and of blocks in float32, for pieces of some lengths."""
    num_tokens, cu_seqlens = sum(lengths), torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    qkv = torch.randn(num_tokens, 3, heads, head_dim, device=DEVICE).to(dtype)
    weight = torch.randn(num_tokens, heads * head_dim, device=DEVICE).to(dtype)
    blocks = BlockPlan.of(Blocks.of(cu_seqlens, heads), 1e4, head_dim, torch.float32, window)
    angles = rotary_tables(positions_within(cu_seqlens, num_tokens), 1e4, head_dim)
    tiles = TilePlan(Tiles.of(cu_seqlens, num_tokens), *angles, window)
    results = []
    for leaf, attend, plan in ((qkv.clone(), attend_tiles, tiles), (qkv.float(), attend_blocks, blocks)):
        leaf.requires_grad_()
        out = attend(leaf * 1, plan=plan)
        out.backward(weight.to(out.dtype))
        results.append((out.detach().float(), leaf.grad.float()))
    return results


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=5).filter(sum),
    window=st.sampled_from([None, 1, 8, 64]),
)
@example(lengths=[TILE, 2 * TILE, 1, TILE + 1], window=None)
@example(lengths=[3 * TILE], window=TILE)
def test_any_packing_equals_blocks(lengths, window):
    if DEVICE.type == "cuda":
        pytest.skip("float32 products are rounded to 19 bits there; see the next test")
    ours, theirs = both_ways(lengths, window)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("window", [None, 16])
def test_half_precision_stays_near_float32(window, head_dim):
    ours, theirs = both_ways([100, 7, 64, 1], window, HALF, heads=3, head_dim=head_dim)
    for got, expected in zip(ours, theirs, strict=True):
        assert ((got - expected).norm() / expected.norm()) < 1e-2


def test_large_scores_do_not_overflow():
    num_tokens, cu_seqlens = 70, torch.tensor([0, 70], device=DEVICE)
    angles = rotary_tables(positions_within(cu_seqlens, num_tokens), 1e4, 32)
    qkv = (40 * torch.randn(num_tokens, 3, 1, 32, device=DEVICE)).to(HALF).requires_grad_()
    out = attend_tiles(qkv * 1, TilePlan(Tiles.of(cu_seqlens, num_tokens), *angles, None))
    out.sum().backward()
    assert out.isfinite().all() and qkv.grad.isfinite().all()


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(sum))
def test_tiles_cover_every_token_once(lengths):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    tiles = Tiles.of(cu_seqlens, sum(lengths))
    covered = []
    for first, start, end in zip(tiles.first.tolist(), tiles.start.tolist(), tiles.end.tolist(), strict=True):
        assert start in cu_seqlens and end in cu_seqlens
        covered += range(first, min(first + TILE, end))
    assert covered == list(range(sum(lengths)))


def test_who_needs_what_is_rotated_in_place_is_refused():
    cu_seqlens = torch.tensor([0, 9], device=DEVICE)
    angles = rotary_tables(positions_within(cu_seqlens, 9), 1e4, 32)
    leaf = torch.randn(9, 3, 1, 32, device=DEVICE, dtype=HALF, requires_grad=True)
    qkv = leaf * 1
    kept = qkv.square()  # needs qkv for its gradient
    out = attend_tiles(qkv, TilePlan(Tiles.of(cu_seqlens, 9), *angles, None))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.sum() + kept.sum()).backward()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="compiled for half precision there; see test_encoder.py")
@pytest.mark.parametrize("joined", [False, True])
def test_an_encoder_on_tiles_equals_itself_on_blocks(joined, monkeypatch):
    """What a compiled encoder does on CUDA, kernels by the interpreter and the rest not compiled."""
    config = EncoderConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        local_attention=8,
    )
    encoder, cu_seqlens, positions = Encoder(config), torch.tensor([0, 70, 70, 90]), torch.arange(0, 90, 7)
    ids = torch.randint(1, 64, (90,))
    results = []
    for tiled in (False, True):
        if tiled:
            monkeypatch.setattr(encoder_module, "varlen_available", lambda *_: True)
            encoder.model.compiled, encoder.model.joined = True, joined
        encoder.zero_grad()
        logits = encoder(ids, cu_seqlens=cu_seqlens, positions=positions)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in encoder.parameters())])
    for ours, blocks in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, blocks, atol=1e-4, rtol=1e-3)
