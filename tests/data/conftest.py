"""What several tests of `data` share."""

import pytest

from mlm_pytorch.data.tokenizer import train_tokenizer


@pytest.fixture(scope="package")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the dog did not " * 3] * 20, vocab_size=300)
