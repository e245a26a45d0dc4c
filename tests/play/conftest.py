"""Two models that know a few sentences by heart, with tokenizers that cut them differently."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from mlm_pytorch.cli.models import open_model
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder

SENTENCES = (
    "the cat sat on the mat",
    "a dog ran to the red house",
    "the bird sang in an old tree",
    "some fish swam in the deep sea",
)
OTHERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?<>()[]{}/'\"&=-_"  # can be written, at least
)


def learn(encoder, tokenizer):
    """Every sentence with each of its tokens hidden, until the model knows them."""
    special = tokenizer.special
    shown, places, truths = [], [], []
    for ids in tokenizer.encode_batch(SENTENCES):
        for i, truth in enumerate(ids):
            shown.append(
                torch.tensor([*special.prefix, *ids[:i], special.mask_token_id, *ids[i + 1 :], *special.suffix])
            )
            places.append(len(special.prefix) + i)
            truths.append(truth)
    rows = pad_sequence(shown, batch_first=True, padding_value=special.pad_token_id)
    seen, wanted = rows != special.pad_token_id, torch.tensor(truths)
    optimizer = torch.optim.AdamW(encoder.parameters(), 5e-3)
    for _ in range(120):
        loss = F.cross_entropy(encoder(rows, attention_mask=seen)[range(len(rows)), places], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of the two models: "whole" has a token for each word, "parts" cuts words into several."""
    made = {}
    for name, kind, size in (("whole", "bpe", 400), ("parts", "wordpiece", 185)):
        torch.manual_seed(0)
        tokenizer = train_tokenizer([*SENTENCES * 20, *OTHERS], size, kind=kind)
        config = EncoderConfig(tokenizer.special.num_tokens, 64, 96, 2, 2, max_position_embeddings=64)
        encoder = Encoder(config)
        learn(encoder, tokenizer)
        made[name] = tmp_path_factory.mktemp("models") / name
        export_encoder(encoder, tokenizer.special, made[name], tokenizer.save)
    return made


@pytest.fixture(scope="session")
def models(folders):
    """The same, opened."""
    return {name: open_model(folder) for name, folder in folders.items()}
