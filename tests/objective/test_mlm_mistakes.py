"""What the class says of settings, ids, labels and transformers that cannot be right."""

import warnings

import pytest
import torch
from recorder import Recorder, V
from torch import nn

from mlm_pytorch.objective import MLM
from mlm_pytorch.tokens import WordTable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_prob": 1.5}, r"mask_prob 1.5 is outside \[0, 1\]; pass a share such as 0.15"),
        ({"mask_prob": -0.1}, r"mask_prob -0.1 is outside \[0, 1\]"),
        ({"mask_prob": float("nan")}, r"mask_prob nan is outside \[0, 1\]"),
        ({"mask_prob": lambda progress: 2.0}, r"2.0 is outside \[0, 1\]"),
        ({"replace_prob": 2}, r"replace_prob 2 is outside \[0, 1\]"),
        ({"random_token_prob": -1}, r"random_token_prob -1 is outside \[0, 1\]"),
        ({"replace_prob": 0.1, "random_token_prob": 0.2}, "random_token_prob 0.2 exceeds replace_prob 0.1, of which"),
        ({"mask_token_id": V}, f"mask_token_id {V} is outside the vocabulary of num_tokens {V}; pass the id"),
        ({"mask_token_id": -1}, "mask_token_id -1 is outside the vocabulary"),
        (
            {"mask_token_id": 0},
            "mask_token_id and pad_token_id are both 0, so a mask would pass for padding; give",
        ),
        ({"num_tokens": 50}, r"the head of Plain gives 61 logits, but num_tokens is 50; pass num_tokens=61"),
        ({"head": "nowhere"}, "head 'nowhere' is not in Plain"),
        ({"head": nn.Linear(2, 2)}, "head Linear is not a part of Plain"),
        (
            {"selection": "words"},
            r"selection 'words' needs to know where words begin; pass words=derive_words\(tokenizer",
        ),
        ({"selection": "letters"}, "selection 'letters' is unknown; choose tokens, words, spans, ngrams"),
        ({"words": WordTable.from_starts([True])}, "selection 'tokens' has no use for words"),
    ],
)
def test_settings_that_contradict(plain, settings, message):
    if settings.get("num_tokens"):
        settings["head"] = "out"
    with pytest.raises(ValueError, match=message):
        MLM(plain, **settings)


class BesidePositions(nn.Module):
    """As many positions as it is wide, their table in front of the tokens'; its head is tied, so no Linear is one."""

    def __init__(self):
        super().__init__()
        self.positions, self.tokens = nn.Embedding(24, 24), nn.Embedding(V, 24)
        self.mix = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return (x + self.mix(x)) @ self.tokens.weight.T


def test_a_head_that_only_looks_like_one(ids):
    with pytest.raises(
        ValueError, match="outside the vocabulary of num_tokens 24; .*, or pass num_tokens= or head= where"
    ):
        MLM(BesidePositions())(ids)
    with pytest.raises(
        ValueError, match="30 is outside the vocabulary of num_tokens 24; .*, or num_tokens= or head= where"
    ):
        MLM(BesidePositions(), mask_token_id=30)
    with pytest.warns(UserWarning, match="no output head was found"):
        assert MLM(BesidePositions(), num_tokens=V)(ids) > 0


def test_a_mask_id_among_the_ignored_is_fine(plain, ids):
    assert MLM(plain, mask_token_id=2, mask_ignore_token_ids=[0, 1, 2, 3])(ids) > 0


def test_random_tokens_need_a_vocabulary():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(V, V))

        def forward(self, ids):
            return self.weight[ids]

    with pytest.raises(ValueError, match="random_token_prob 0.1 needs to know the vocabulary, .* pass num_tokens"):
        MLM(Opaque(), random_token_prob=0.1)
    with pytest.warns(UserWarning, match="no output head was found"):
        assert MLM(Opaque(), random_token_prob=0.1, num_tokens=V)(torch.full((2, 8), 5)) > 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 8), "ids are torch.float32; pass token ids as int64"),
        (torch.zeros(2, 8, dtype=torch.bool), "ids are torch.bool"),
        (
            torch.zeros(8, dtype=torch.long),
            r"ids have shape \(8,\); pass \(batch, length\), such as seq.unsqueeze\(0\)",
        ),
        (torch.full((2, 8), 77), "id 77 is outside the vocabulary of num_tokens 61; use the tokenizer of this model"),
        (torch.full((2, 8), -100), "id -100 is negative; token ids start at 0"),
        (torch.zeros(2, 8).numpy(), r"ids are of type ndarray; pass a tensor, such as torch.as_tensor\(ids\)"),
        ([[5, 6]], "ids are of type list; pass a tensor"),
    ],
)
def test_bad_ids(plain, bad, message):
    with pytest.raises(ValueError, match=message):
        MLM(plain)(bad)


def test_hidden_states_in_place_of_logits():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(V, 8), nn.Linear(8, V)

        def forward(self, ids):
            return self.embedding(ids)

    mlm = MLM(Headless())
    for _ in range(2):  # what a call finds out must not make the next one say something else
        with (
            pytest.warns(UserWarning, match="is called 0 times") if _ == 0 else warnings.catch_warnings(),
            pytest.raises(
                ValueError, match="Headless returned 8 logits per position, which has none for id 50; return"
            ),
        ):
            mlm(torch.full((2, 8), 50))


def test_a_model_that_fails_is_not_said_to_be_slow(plain, ids):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.as_pair = plain, True

        def forward(self, ids):
            logits = self.model(ids)
            return (logits, ids) if self.as_pair else logits

    mlm = MLM(Pair())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="Pair returned tuple, .* wrap it in a module that returns logits"):
            mlm(ids)
        mlm.transformer.as_pair = False
        assert mlm(ids) > 0
    assert mlm._verdict is not None and mlm._verdict.head is not None, "the failed call does not decide for later ones"


def test_labels_of_another_shape(plain, ids):
    with pytest.raises(ValueError, match=r"labels \(4, 23\) differ in shape from ids \(4, 24\); pass one label per id"):
        MLM(plain)(ids, labels=ids[:, 1:])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, f"label -1 is outside the vocabulary of num_tokens {V}; pass token ids, -100 where"),
        (V, f"label {V} is outside the vocabulary of num_tokens {V}"),
        (0.5, r"labels are torch.float32; pass token ids as int64, such as labels.long\(\)"),
    ],
)
def test_labels_that_are_no_tokens(plain, ids, label, message):
    labels = torch.full(ids.shape, -100, dtype=torch.float32 if isinstance(label, float) else torch.int64)
    labels[1, 3] = label
    with pytest.raises(ValueError, match=message):
        MLM(plain)(ids, labels=labels)


def test_int32_labels(plain, ids):
    assert MLM(plain)(ids, labels=ids.int()) > 0


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.filterwarnings("ignore:every position of")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            lambda logits: (logits, None),
            "returned tuple, which is neither a tensor of logits nor an object with .logits",
        ),
        (lambda logits: None, "returned NoneType"),
        (
            lambda logits: logits.mean(1),
            r"returned logits \(4, 61\) for ids \(4, 24\); return one row of logits per id",
        ),
        (lambda logits: logits[:, :, :50], "gives 50 logits, but num_tokens is 61"),
    ],
)
def test_transformers_that_return_something_else(output, message, dense, ids):
    class Odd(Recorder):
        def forward(self, ids):
            return output(self.net(ids))

    with pytest.raises(ValueError, match=message):
        MLM(Odd(), num_tokens=V, dense=dense)(ids)


def test_logits_that_are_not_finite(plain, ids):
    model = MLM(plain, mask_prob=1.0)
    model(ids)
    plain.positions.data[7] = float("nan")
    plain.layers = nn.Identity()
    plain.layers.forward = lambda x, src_key_padding_mask=None: x
    with pytest.raises(ValueError, match="logits are NaN or infinite, first at row 0, position 7; look for"):
        model(ids)
    ids[0] = 0
    ids[1, 7] = 0
    with pytest.raises(ValueError, match="first at row 2, position 7"):
        model(ids)


def test_data_parallel_is_refused(make_plain):
    with pytest.raises(ValueError, match="wrap the transformer in DistributedDataParallel, one process for each GPU"):
        MLM(torch.nn.DataParallel(make_plain()), mask_token_id=1)
