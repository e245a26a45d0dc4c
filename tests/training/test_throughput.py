import pytest
import torch
from torch import nn

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.training.throughput import Cost, flops_per_token, measure_peak


def test_operations_of_the_encoder_counted_by_hand():
    config = EncoderConfig(
        100, 32, 48, 4, 2, max_position_embeddings=64, global_attn_every_n_layers=2, local_attention=16
    )
    cost = flops_per_token(Encoder(config), num_tokens=90, piece_length=40.0)
    matrices = 4 * (3 * 32 * 32 + 32 * 32 + 2 * 48 * 32 + 48 * 32) + 32 * 32  # layers and head
    attended = 2 * 40 + 2 * 16
    assert cost == Cost(6 * matrices + 12 * 32 * attended, 6 * 100 * 32)
    assert cost.of(10, 3) == 10 * cost.per_token + 3 * cost.per_target


def test_a_model_that_tells_nothing_is_counted_by_its_matrices():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50))
    assert flops_per_token(model, num_tokens=50, piece_length=9.0) == Cost(6 * 64, 6 * 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_peak_is_measured_without_a_random_number(dtype):
    before = torch.get_rng_state()
    assert 1e8 < measure_peak(torch.device("cpu"), dtype) < 1e15
    assert torch.equal(before, torch.get_rng_state())
