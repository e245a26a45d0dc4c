"""What is known of a model before and after it is opened."""

import json

import pytest
import torch

from mlm_pytorch.cli.models import look_at_model, open_model
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder


@pytest.mark.parametrize(
    ("config", "length"),
    [({}, 512), ({"model_max_length": 60}, 60), ({"model_max_length": 10**30}, 1024)]
    + [({"model_max_length": value}, 512) for value in ("60", -1, 0, True, None, [60])]
    + [([], 512)],
)
def test_the_length_that_a_tokenizer_declares(tmp_path, config, length):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a few words to make a tokenizer of"] * 20, 300)
    model = Encoder(EncoderConfig(320, 32, 48, 1, 2, max_position_embeddings=1024))
    export_encoder(model, tokenizer.special, tmp_path, tokenizer.save)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert look_at_model(tmp_path).seq_len == open_model(tmp_path).seq_len == length
