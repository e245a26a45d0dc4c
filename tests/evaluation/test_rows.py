"""Logits at one column of each row are those of the whole model, whatever computes the products."""

import pytest
import torch

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation.rows import product, row_logits

BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["by oneDNN where there is one", "plain"])
@pytest.mark.parametrize("options", [{}, BIASED, {"hidden_activation": "silu", "decoder_bias": False}])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_equals_the_whole_model(num_layers, options, dtype):
    shape = {"local_attention": 6, "max_position_embeddings": 32, "initializer_range": 0.5}
    encoder = Encoder(EncoderConfig(64, 32, 48, num_layers, 2, **shape | options)).eval().to(dtype)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # biases begin at zero
        ids_BL, column_B = torch.randint(5, 64, (7, 11)), torch.randint(11, (7,))
        expected = encoder(ids_BL)[torch.arange(7), column_B]
        torch.testing.assert_close(row_logits(encoder)(ids_BL, column_B), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("after", ["nothing", "gelu", "times", "plus"])
def test_what_follows_a_product_is_the_same_when_fused(after):
    linear, x, other = torch.nn.Linear(16, 24), torch.randn(5, 16), torch.randn(5, 8)
    options = {"nothing": {}, "gelu": {"gelu": True}, "times": {"times": other}, "plus": {"plus": other}}[after]
    with torch.no_grad():
        fused = product(x, linear, slice(8, 16), **options)
        widened = {name: value.double() if name != "gelu" else value for name, value in options.items()}
        plain = product(x.double(), linear.double(), slice(8, 16), **widened)
    torch.testing.assert_close(fused.double(), plain, atol=1e-6, rtol=1e-5)


def test_longer_than_the_model_takes():
    encoder = Encoder(EncoderConfig(64, 32, 48, 1, 2, max_position_embeddings=8))
    with pytest.raises(ValueError, match="a piece of 9 tokens exceeds max_position_embeddings 8"):
        row_logits(encoder)(torch.zeros(1, 9, dtype=torch.int64), torch.tensor([0]))
