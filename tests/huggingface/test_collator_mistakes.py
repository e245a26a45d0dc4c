"""What the collator says of arguments and examples that cannot be right."""

import math

import pytest
from collating import examples_of, make_tokenizer

from mlm_pytorch.huggingface import MLMCollator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlm": False}, "mlm=False asks for causal language modelling; use transformers' own collator"),
        ({"mlm_probability": 1.5}, r"mlm_probability 1.5 is outside \[0, 1\]; pass a share"),
        ({"mlm_probability": None}, r"mlm_probability None is outside \[0, 1\]"),
        ({"mask_replace_prob": -0.1}, r"mask_replace_prob -0.1 is outside \[0, 1\]"),
        ({"random_replace_prob": math.nan}, r"random_replace_prob nan is outside \[0, 1\]"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "0.8 and random_replace_prob 0.3 together exceed 1"),
        ({"selection": "letters"}, "selection 'letters' is unknown; pass one of tokens, words, spans, ngrams"),
        ({"selection": "spans", "whole_word_mask": True}, "whole_word_mask=True contradicts selection='spans'"),
        ({"padding": "most"}, "padding 'most' is unknown; pass 'longest', 'max_length' or 'do_not_pad'"),
        ({"padding": "max_length"}, "padding 'max_length' needs max_length"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of 0 is not positive"),
        ({"return_tensors": "tf"}, "return_tensors 'tf' is unknown; pass 'pt' or 'np'"),
    ],
)
def test_bad_arguments(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        MLMCollator(tokenizer, **arguments)


def test_a_tokenizer_without_a_mask_token():
    with pytest.raises(ValueError, match="has no mask token; add one"):
        MLMCollator(make_tokenizer(mask_token=None))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "0 examples make no batch"),
        ([{"ids": [5, 6]}], r"the examples have the fields \['ids'\] but no input_ids; tokenize them first"),
        (
            [{"input_ids": [5]}, {"input_ids": [5], "x": 1}],
            r"example 1 has the fields \['input_ids', 'x'\] and",
        ),
        ([{"input_ids": [[5, 6]]}], r"input_ids of example 0 have shape \(1, 2\) and type int64; pass one dimension"),
        ([{"input_ids": [5]}, {"input_ids": [5.5]}], "input_ids of example 1 have shape .* and type float64"),
        ([{"input_ids": "text"}], "input_ids of example 0 have shape"),
        ([{"input_ids": [5, 6], "x": [1]}, {"input_ids": [5, 6, 7], "x": [1, 2]}], "the field x has shapes"),
    ],
)
def test_bad_examples(tokenizer, examples, message):
    with pytest.raises(ValueError, match=message):
        MLMCollator(tokenizer)(examples)


def test_an_example_longer_than_max_length(tokenizer):
    with pytest.raises(ValueError, match="an example of 9 tokens exceeds max_length 8; truncate it when tokenizing"):
        MLMCollator(tokenizer, padding="max_length", max_length=8)(examples_of(4, 9))


def test_unknown_return_tensors_at_the_call(tokenizer):
    with pytest.raises(ValueError, match="return_tensors 'jax' is unknown"):
        MLMCollator(tokenizer)(examples_of(4), return_tensors="jax")
