"""Some of what `benchmarks/architectures.py` runs in full: one of each way to build a head."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def architectures():
    path = Path(__file__).parents[2] / "benchmarks" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("bert", "cls"),
        ("roberta", "lm_head"),
        ("distilbert", "vocab_transform"),  # a chain of modules of the model itself
        ("electra", "generator_predictions"),
        ("modernbert", "head"),
        ("mobilebert", "cls"),  # logits by a bare matmul
        ("perceiver", "embedding_decoder"),  # no output embeddings
        ("bart", "lm_head"),  # encoder and decoder
        ("reformer", "lm_head"),  # reversible: its backward adds to gradients by itself
        ("xlm", "pred_layer"),  # the head returns a tuple
    ],
)
def test_sparse_and_equal(architectures, model_type, head):
    row = architectures.compare(model_type)
    assert row["status"] == "sparse", row
    assert row["head"] == head
