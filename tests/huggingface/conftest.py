"""What several tests of `huggingface` share."""

import pytest
from collating import make_tokenizer


@pytest.fixture(scope="package")
def tokenizer():
    return make_tokenizer()
