"""The class as it is used: its loss against a slow reference, its settings, and what it leaves alone."""

import copy
import io
import pickle
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from recorder import Recorder, V
from torch import nn

from mlm_pytorch import masking
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.masking import RateSchedule
from mlm_pytorch.objective import MLM, MLMOutput, cross_entropy, mlm
from mlm_pytorch.tokens import IGNORE_INDEX, WordTable


def loss_and_gradients(mlm, ids, seed=5, **kwargs):
    mlm.zero_grad()
    torch.manual_seed(seed)
    loss = mlm(ids, **kwargs)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in mlm.named_parameters() if p.grad is not None}


def test_sparse_equals_dense(transformer, ids):
    sparse = loss_and_gradients(MLM(transformer), ids)
    dense = loss_and_gradients(MLM(transformer, dense=True), ids)
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_equals_the_loss_by_hand(plain, ids):
    model = MLM(plain, mask_prob=0.3)
    torch.manual_seed(1)
    output = model(ids, return_output=True)
    torch.manual_seed(1)
    corrupted = model.corrupt(ids)
    assert torch.equal(output.positions, corrupted.selected.flatten().nonzero().squeeze(1))
    assert torch.equal(output.labels, ids.flatten()[output.positions])
    logits = plain(corrupted.input_ids).flatten(0, 1)[output.positions]
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    expected = nn.functional.cross_entropy(logits, output.labels)
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    assert output.num_targets == len(output.labels)
    torch.testing.assert_close(output.loss_sum / output.num_targets, output.loss)
    assert output.accuracy == (logits.argmax(-1) == output.labels).float().mean()
    assert isinstance(output, MLMOutput)
    with pytest.raises(FrozenInstanceError):
        output.loss = 0


def test_positional_arguments_as_in_the_seed(plain):
    model = MLM(plain, 0.2, 0.8, V, 0.1, 3, 1, [4, 5])
    assert (model.mask_prob, model.replace_prob, model.num_tokens, model.random_token_prob) == (0.2, 0.8, V, 0.1)
    assert (model.mask_token_id, model.pad_token_id, model.mask_ignore_token_ids) == (3, 1, {1, 4, 5})
    defaults = MLM(plain)
    assert (defaults.mask_prob, defaults.replace_prob, defaults.num_tokens) == (0.15, 0.9, None)
    assert (defaults.random_token_prob, defaults.mask_token_id, defaults.pad_token_id) == (0.0, 2, 0)
    assert defaults.mask_ignore_token_ids == {0}
    assert all(name.startswith("transformer.") for name in model.state_dict())


def test_determined_by_manual_seed(plain, ids):
    model = MLM(plain)
    assert loss_and_gradients(model, ids, 1)[0] == loss_and_gradients(MLM(plain), ids, 1)[0]  # verified, or not yet
    assert loss_and_gradients(model, ids, 1)[0] != loss_and_gradients(model, ids, 2)[0]


@pytest.mark.parametrize("shape", [(3, 20), (2, 1), (1, 1)])
def test_nothing_to_predict_gives_zero_with_a_gradient(transformer, shape):
    loss, gradients = loss_and_gradients(MLM(transformer), torch.zeros(shape, dtype=torch.long))
    assert loss == 0
    assert gradients
    assert all(gradient.eq(0).all() for gradient in gradients.values())


def test_rows_of_padding_beside_others(transformer, ids):
    ids[1] = 0
    loss, gradients = loss_and_gradients(MLM(transformer), ids)
    assert loss > 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_int32_ids(plain, ids):
    model = MLM(plain)
    assert loss_and_gradients(model, ids)[0] == loss_and_gradients(model, ids.int())[0]


def test_z_loss(plain, ids):
    torch.manual_seed(1)
    output = MLM(plain, z_loss=0.5)(ids, return_output=True)
    expected = cross_entropy(output.logits, output.labels, z_loss=0.5)[0]
    torch.testing.assert_close(output.loss_sum, expected)
    assert output.loss_sum > cross_entropy(output.logits, output.labels)[0]


def test_labels_given_by_the_caller(plain, ids):
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 3], labels[1, 7], labels[2, 20] = 9, 11, 0  # the last one is padding
    output = MLM(plain)(ids, labels=labels, return_output=True)
    assert output.positions.tolist() == [3, 24 + 7]
    assert output.labels.tolist() == [9, 11]
    expected = nn.functional.cross_entropy(plain(ids)[[0, 1], [3, 7]], torch.tensor([9, 11]))
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)


def test_random_tokens_come_from_the_vocabulary_derived(transformer):
    model = MLM(transformer, mask_prob=1.0, replace_prob=1.0, random_token_prob=1.0, mask_ignore_token_ids=[7])
    seen = model.corrupt(torch.full((40, 60), 3)).input_ids.unique().tolist()
    assert seen == [i for i in range(V) if i not in (0, 2, 7)]


def test_a_schedule_of_progress(plain, ids):
    model = MLM(plain, RateSchedule(0.5, 0.1))
    counts = []
    for model.progress in (0.0, 1.0):
        counts.append(int(model.corrupt(ids[:1]).selected.sum()))
    assert counts == [12, 3]
    halves = MLM(plain, lambda progress: 0.5)
    assert halves.corrupt(ids[:1]).selected.sum() == 12


def test_selections(plain, ids):
    words = WordTable.from_starts([i % 3 == 0 for i in range(V)])
    whole = MLM(plain, 0.5, selection="words", words=words).corrupt(ids)
    starts = words.starts_word(ids)
    inside = ~starts & (ids != 0) & (ids != 2)
    joined = inside[:, 1:] & (ids[:, :-1] != 0)
    assert torch.equal(whole.selected[:, 1:][joined], whole.selected[:, :-1][joined])
    for settings in ({"selection": "spans"}, {"selection": "ngrams", "words": words}):
        selected = MLM(plain, 0.5, **settings).corrupt(ids).selected
        assert 0 < selected.sum() <= 48
        assert not selected[ids == 0].any()
    own = MLM(plain, selection=lambda scores, ids, maskable, mask_prob: maskable)
    assert torch.equal(own.corrupt(ids).selected, ids != 0)
    assert MLM(plain, selection=masking.select_tokens).corrupt(ids).selected.any()


def test_positions_are_bounded_without_asking_the_device(plain, ids, monkeypatch):
    model = MLM(plain, 0.3)
    selected = model.corrupt(ids).selected
    exact = model._positions(selected, exact=True)
    monkeypatch.setattr(mlm.torch.compiler, "is_compiling", lambda: True)
    bounded = model._positions(selected, exact=False)
    assert len(bounded) == 4 * 8  # ceil(0.3 * 24) a row
    assert torch.equal(bounded[: len(exact)], exact)
    assert not selected.flatten()[bounded[len(exact) :]].any()
    everywhere = MLM(plain, 0.99)._positions(selected, exact=False)
    assert everywhere.tolist() == list(range(4 * 24)), "gathered or dense, logits then are in the same order"


def test_padding_is_masked_out_for_known_libraries(make_bert, make_x_transformer, ids):
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for model, name in ((make_bert(**without_dropout), "attention_mask"), (make_x_transformer(), "mask")):
        found = MLM(model)
        is_token = ids != 0
        automatic, _ = loss_and_gradients(found, ids)
        torch.testing.assert_close(automatic, loss_and_gradients(found, ids, **{name: is_token})[0])
        everything = torch.ones_like(is_token)
        assert automatic != loss_and_gradients(found, ids, **{name: everything})[0]


def test_padding_masks_elsewhere(ids):
    transformer = Recorder()
    MLM(transformer)(ids, anything="goes")
    assert transformer.seen == {"anything": "goes"}
    ids[0] = 0
    MLM(transformer, pad_mask_argument="keep")(ids)
    assert torch.equal(transformer.seen["keep"], (ids != 0) | (torch.arange(4) == 0).view(4, 1))
    MLM(transformer, pad_mask_argument="keep")(ids, keep=None)
    assert transformer.seen == {"keep": None}
    MLM(transformer, pad_mask_argument="keep")(ids[1:2])
    assert transformer.seen == {}  # no padding: nothing to mask, and the fast paths stay


class Attending(nn.Module):
    """Torch's attention, whose mask is True at padding; `turned` takes one that is True at tokens."""

    def __init__(self, turned: bool):
        super().__init__()
        self.table, self.head, self.turned = nn.Embedding(V, 8), nn.Linear(8, V), turned
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids, key_padding_mask=None):
        x = self.table(ids)
        is_padding = ~key_padding_mask if self.turned and key_padding_mask is not None else key_padding_mask
        return self.head(x + self.attention(x, x, x, key_padding_mask=is_padding)[0])


def test_a_mask_the_wrong_way_round_is_named(ids):
    ids[:, -3:] = 0
    own = {"key_padding_mask": ids == 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = MLM(Attending(turned=True), pad_mask_argument="key_padding_mask", dense=True)
        right(ids).backward()
        MLM(Attending(turned=False), dense=True)(ids, **own)
    assert right.transformer.training
    wrong = MLM(Attending(turned=False), pad_mask_argument="key_padding_mask", dense=True)
    wrong(ids[:2, :-3])  # without padding there is nothing to try
    with pytest.warns(UserWarning, match=r"Attending sees padding .*mlm\(ids, key_padding_mask=ids == 0\)"):
        wrong(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong(ids)  # said once


def test_nothing_stays_on_the_transformer(plain, ids, tmp_path):
    before = {name: set(vars(module)) for name, module in plain.named_modules()}
    model = MLM(plain)
    model(ids).backward()
    del model
    assert {name: set(vars(module)) for name, module in plain.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
    buffer = io.BytesIO()
    torch.save(plain.state_dict(), buffer)


def test_the_transformer_can_be_saved(make_bert, ids, tmp_path: Path):
    transformer = make_bert().eval()
    MLM(transformer)(ids).backward()
    torch.save(transformer, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(loaded(ids).logits, transformer(ids).logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(plain, ids, copied):
    model = MLM(plain, random_token_prob=0.1)
    model(ids)
    twin = copied(model)
    assert loss_and_gradients(twin, ids)[0] == loss_and_gradients(model, ids)[0]
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_under_autocast_and_in_bfloat16(transformer, ids):
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_and_gradients(MLM(transformer), ids)
    assert loss.dtype == torch.float32
    reference, _ = loss_and_gradients(MLM(transformer, dense=True), ids)
    torch.testing.assert_close(loss, reference, rtol=0.05, atol=0.05)


def test_gradient_checkpointing(make_bert, ids):
    transformer = make_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    plain = loss_and_gradients(MLM(transformer), ids)
    old_name = "gradient_checkpointing_enable"  # before transformers 5.20 or so
    getattr(
        transformer,
        "activation_checkpointing_enable" if hasattr(transformer, "activation_checkpointing_enable") else old_name,
    )()
    torch.testing.assert_close(loss_and_gradients(MLM(transformer), ids), plain)


def test_gradient_checkpointing_around_it(plain, ids):
    model = MLM(plain)
    expected = loss_and_gradients(model, ids)
    model.zero_grad()
    torch.manual_seed(5)
    torch.utils.checkpoint.checkpoint(model, ids, use_reentrant=False).backward()
    torch.testing.assert_close(plain.out.weight.grad, expected[1]["transformer.out.weight"])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("which", ["transformer", "transformer used before", "all"])
def test_torch_compile(make_plain, ids, which):
    torch._dynamo.reset()
    transformer = make_plain()
    reference = MLM(transformer, dense=True)
    match which:
        case "transformer":
            compiled = MLM(torch.compile(transformer, backend="eager"))
        case "transformer used before":
            inner = torch.compile(transformer, backend="eager")
            inner(ids)  # compiled without our hook
            compiled = MLM(inner)
        case "all":
            compiled = torch.compile(MLM(transformer), backend="eager")
    for seed in range(3):
        torch.manual_seed(seed)
        loss = compiled(ids)
        torch.testing.assert_close(loss, loss_and_gradients(reference, ids, seed)[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("mask_prob", [0.3, 0.99, 1.0])
def test_torch_compile_at_any_rate_and_length(make_plain, ids, mask_prob):
    torch._dynamo.reset()
    transformer = make_plain()
    reference = MLM(transformer, mask_prob, dense=True)
    compiled = torch.compile(MLM(transformer, mask_prob), backend="eager")
    for seed, batch in enumerate((ids, ids[:, :17], ids[:, :9], ids[:, :9].int())):
        loss = loss_and_gradients(compiled, batch, seed)[0]
        torch.testing.assert_close(loss, loss_and_gradients(reference, batch, seed)[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_short_first_batches_decide_nothing(plain, ids):
    model = MLM(plain)
    assert model(ids[:1, :4]) > 0
    assert model._verdict is None
    model(ids)
    assert model._verdict.head == "norm"


def test_a_vocabulary_learnt_from_the_logits(ids):
    class Wider(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.to_logits = nn.Embedding(V, 8), nn.Sequential(nn.Linear(8, 70), nn.ZeroPad1d((0, 5)))

        def forward(self, ids):
            return self.to_logits(self.embed(ids))

    model = MLM(Wider())
    assert model(ids) > 0
    assert model._width == 75
    with pytest.raises(ValueError, match="the head of Wider gives 75 logits, but num_tokens is 70; pass num_tokens=75"):
        MLM(Wider(), random_token_prob=0.1)(ids)


def test_the_padding_id_of_a_model_s_own_configuration(make_bert, ids):
    with pytest.raises(ValueError, match="pad_token_id 0 is not the padding of BertForMaskedLM, .* is 1; pass pad_to"):
        MLM(make_bert(pad_token_id=1))
    with pytest.raises(ValueError, match="pad_token_id 1 is not the padding of BertForMaskedLM, .* is 0; pass pad_to"):
        MLM(make_bert(pad_token_id=0), pad_token_id=1)
    assert MLM(make_bert(pad_token_id=1), pad_token_id=1).pad_token_id == 1
    assert MLM(make_bert(pad_token_id=None))(ids) > 0


@pytest.mark.parametrize("num_tokens", [None, 96])
def test_the_built_in_encoder(num_tokens):
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1
    )
    encoder = Encoder(config)
    mlm = MLM(encoder, mask_token_id=4, pad_token_id=0, num_tokens=num_tokens, random_token_prob=0.1)
    output = mlm(torch.randint(5, 96, (4, 32)), return_output=True)
    assert output.logits.shape == (len(output.labels), 96)
    assert mlm.verify(torch.randint(5, 96, (4, 32))).head == "head"
