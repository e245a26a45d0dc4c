"""What transformers' own collator promises, asked of ours."""

import numpy as np
import pytest
import torch
import transformers
from collating import MASK, SPECIAL, make_tokenizer, make_wordpiece_tokenizer

from mlm_pytorch.huggingface import MLMCollator
from mlm_pytorch.tokens import IGNORE_INDEX


@pytest.fixture
def bare_tokenizer():
    return make_tokenizer(vocab=SPECIAL)


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("lengths", "multiple", "padded"), [((10, 10), None, 10), ((5, 10), None, 10), ((5, 10), 8, 16)]
)
def test_theirs_shapes_and_labels(bare_tokenizer, return_tensors, bare, lengths, multiple, padded):
    examples = [list(range(n)) if bare else {"input_ids": list(range(n))} for n in lengths]
    collator = MLMCollator(bare_tokenizer, pad_to_multiple_of=multiple, return_tensors=return_tensors)
    masked_any = False
    for _ in range(10):
        batch = collator(examples)
        assert batch["input_ids"].shape == (2, padded)
        assert batch["labels"].shape == (2, padded)
        masked = batch["input_ids"] == MASK
        masked_any |= bool((masked & (batch["labels"] != IGNORE_INDEX)).any())
        # Where neither [MASK] nor the original is shown there is nothing: this vocabulary has no token to draw.
        assert ((batch["labels"] == IGNORE_INDEX) | masked | (batch["labels"] == batch["input_ids"])).all()
    assert masked_any


@pytest.mark.parametrize("multiple", [None, 8])
@pytest.mark.parametrize("label", ["next_sentence_label", "sentence_order_label"])
@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_theirs_sentence_pairs(bare_tokenizer, multiple, label, convert):
    examples = [
        {"input_ids": convert(list(range(5))), "token_type_ids": convert(list(range(5))), label: i} for i in range(2)
    ]
    batch = MLMCollator(bare_tokenizer, pad_to_multiple_of=multiple)(examples)
    for name in ("input_ids", "token_type_ids", "labels"):
        assert batch[name].shape == (2, multiple or 5)
    assert batch[label].tolist() == [0, 1]


@pytest.mark.parametrize("convert_to", [None, "np", "pt"])
def test_theirs_whole_words_with_offsets(convert_to):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_wordpiece_tokenizer().backend_tokenizer, pad_token="[PAD]", mask_token="[MASK]"
    )
    words = [f"token_{i}" for i in range(998)]
    tokenizer.add_tokens(words)
    examples = [tokenizer(" ".join(words), return_offsets_mapping=True) for _ in range(2)]
    examples = [example.convert_to_tensors(convert_to) for example in examples]
    one, same, other = (MLMCollator(tokenizer, whole_word_mask=True, seed=seed)(examples) for seed in (42, 42, 43))
    assert one["input_ids"].shape == one["labels"].shape == (2, 998)
    assert torch.equal(one["input_ids"], same["input_ids"])
    assert not torch.equal(one["input_ids"], other["input_ids"])
